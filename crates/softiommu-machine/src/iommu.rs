//! IOMMUs of a machine.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Overrides;

/// An IOMMU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Iommu {
    /// Its name, which no other IOMMU has.
    #[serde(default = "Iommu::default_name")]
    pub name: String,
    /// Which hardware it is.
    pub model: Model,
    /// What is different from the model.
    #[serde(default, skip_serializing_if = "Overrides::is_empty")]
    pub options: Overrides,
}

impl Iommu {
    pub(crate) fn default_name() -> String {
        "iommu0".to_owned()
    }
}

/// A model of hardware.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Model {
    /// An Arm SMMUv3 with everything that Linux's driver makes use of.
    Smmuv3,
    /// Like Arm's MMU-600.
    Mmu600,
    /// Like Arm's MMU-700.
    Mmu700,
    /// What the kernel's iommufd selftests expect, with `IOMMU_TEST_CMD`.
    Mock,
}

impl Model {
    const ALL: [(&'static str, Self); 4] = [
        ("smmuv3", Self::Smmuv3),
        ("mmu600", Self::Mmu600),
        ("mmu700", Self::Mmu700),
        ("mock", Self::Mock),
    ];
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::ALL.iter().find(|(_, model)| model == self).map_or("", |(name, _)| name);
        f.write_str(name)
    }
}

impl FromStr for Model {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|(known, _)| *known == name);
        found.map(|(_, model)| model).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|(name, _)| format!("`{name}`")).collect();
            format!("no IOMMU model is called `{name}`; there are {}", names.join(", "))
        })
    }
}
