use super::*;
pub(crate) fn adhoc() {
    let pool = warm_pool(100);
    let mut mapper = Mapper::new(geometry(), &pool).expect("a table");
    let mut gather = Gather::default();
    for n in 0..64 {
        map(&mut mapper, INPUT + n * 2 * MIB + 256 * PAGE, 256 * PAGE, PAGE);
    }
    for pages in [1u64, 8, 16, 32, 64, 128, 256] {
        let (mut bm, mut bu) = (u128::MAX, u128::MAX);
        for _ in 0..200 {
            let t = std::time::Instant::now();
            for n in 0..64 {
                map(&mut mapper, INPUT + n * 2 * MIB, pages * PAGE, PAGE);
            }
            bm = bm.min(t.elapsed().as_nanos());
            let t = std::time::Instant::now();
            for n in 0..64 {
                mapper
                    .unmap(INPUT + n * 2 * MIB..INPUT + n * 2 * MIB + pages * PAGE, &mut gather)
                    .unwrap();
            }
            bu = bu.min(t.elapsed().as_nanos());
        }
        println!("{pages}: map {} unmap {}", bm as f64 / 64.0, bu as f64 / 64.0);
    }
}
