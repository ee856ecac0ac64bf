//! The layouts that this crate relies on, as data: `cargo xtask conformance
//! layout` compiles a C program from them and lets the kernel's header judge.

/// One struct of the uAPI.
#[derive(Debug, Clone, Copy)]
pub struct Struct {
    pub(crate) name: &'static str,
    /// `sizeof`.
    pub size: usize,
    pub(crate) fields: &'static [(&'static str, usize)],
}

impl Struct {
    /// The struct's tag in C.
    pub fn name(&self) -> &'static str {
        self.name.rsplit("::").next().unwrap_or(self.name).trim()
    }

    /// Its fields with their offsets in bytes, without those that have no name
    /// in C.
    pub fn fields(&self) -> impl Iterator<Item = (&'static str, usize)> {
        self.fields.iter().filter_map(|&(name, offset)| match name {
            "__bindgen_anon_1" | "arg" => None,
            "type_" => Some(("type", offset)),
            name => Some((name, offset)),
        })
    }
}

/// Every struct that user space exchanges with us.
pub const STRUCTS: &[Struct] = crate::plain::STRUCTS;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_c() {
        let alloc = STRUCTS.iter().find(|s| s.name() == "iommu_viommu_alloc").unwrap();
        assert_eq!(alloc.size, 40);
        assert!(alloc.fields().any(|f| f == ("type", 8)));
    }
}
