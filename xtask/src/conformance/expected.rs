//! What is known about single cases.

/// Cases that do not pass yet, by pattern, and why. They are reported, and so is
/// one that passes after all: then its line has to go.
const NOT_YET: &[(&str, &str)] = &[
    #[cfg(test)]
    ("not_yet.*", "for tests"),
];

/// Cases that map huge pages from hugetlbfs.
const HUGE_PAGES: &[&str] = &[
    "iommufd_ioas.*.access_domain_destory",
    "iommufd_mock_domain.*_domain_hugepage.basic",
    "iommufd_mock_domain.*_domains_hugepage.basic",
    "iommufd_mock_domain.*_domain_hugepage.all_aligns*",
    "iommufd_mock_domain.*_domains_hugepage.all_aligns*",
    "iommufd_dirty_tracking.*_huge.*",
    "vfio_compat_mock_domain.*.huge_map",
    "vfio_dma_mapping_test.*_hugetlb_2mb.*",
];

/// Why `case` is not expected to pass yet.
pub(crate) fn not_yet(case: &str) -> Option<&'static str> {
    let found = NOT_YET.iter().find(|(pattern, _)| matches(pattern, case));
    found.map(|(_, reason)| *reason)
}

/// Whether `case` cannot run without huge pages.
pub(crate) fn needs_huge_pages(case: &str) -> bool {
    HUGE_PAGES.iter().any(|pattern| matches(pattern, case))
}

/// Whether all of `name` matches `pattern`, in which `*` stands for anything.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    let Some((head, tail)) = pattern.split_once('*') else {
        return pattern == name;
    };
    let Some(rest) = name.strip_prefix(head) else {
        return false;
    };
    let mut suffixes = rest.char_indices().map(|(i, _)| &rest[i..]);
    matches(tail, "") || suffixes.any(|suffix| matches(tail, suffix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_anything() {
        assert!(matches("a.b", "a.b"));
        assert!(!matches("a.b", "a.bc"));
        assert!(matches("a.*", "a."));
        assert!(matches("a.*.c", "a.b.d.c"));
        assert!(!matches("a.*.c", "a.c"));
        assert!(matches("*b*", "abc"));
        assert!(!matches("*x*", "abc"));
        assert!(matches("*", ""));
        assert!(!matches("*a", ""));
    }
}
