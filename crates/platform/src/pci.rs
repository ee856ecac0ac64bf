//! Where a PCI function is.

use std::fmt;
use std::str::FromStr;

/// The address of a PCI function, written as the kernel does: `0000:00:1f.3`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    /// The segment, Linux's domain.
    pub segment: u16,
    /// The bus.
    pub bus: u8,
    /// The device, 5 bits.
    pub device: u8,
    /// The function, 3 bits.
    pub function: u8,
}

impl PciAddress {
    /// Device and function as one number.
    pub fn devfn(self) -> u8 {
        self.device << 3 | self.function
    }

    /// The address of a virtual function of this function, numbered from 0: they follow it one by one (First VF Offset and
    /// VF Stride are 1). `None`: its bus has no room for so many.
    pub fn virtual_function(self, index: u16) -> Option<Self> {
        let devfn = u16::from(self.devfn()).checked_add(index)?.checked_add(1)?;
        let devfn = u8::try_from(devfn).ok()?;
        Some(Self { device: devfn >> 3, function: devfn & 7, ..self })
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { segment, bus, device, function } = self;
        write!(f, "{segment:04x}:{bus:02x}:{device:02x}.{function}")
    }
}

/// A text is no PCI address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no PCI address: one looks like 0000:00:1f.3, in hexadecimal digits")]
pub struct NotAnAddress(String);

impl FromStr for PciAddress {
    type Err = NotAnAddress;

    fn from_str(text: &str) -> Result<Self, NotAnAddress> {
        let parse = || {
            let digits = |part: &str, len: usize| {
                let fits = part.len() == len && part.bytes().all(|byte| byte.is_ascii_hexdigit());
                fits.then(|| u16::from_str_radix(part, 16).ok()).flatten()
            };
            let (segment, rest) = text.split_once(':')?;
            let (bus, rest) = rest.split_once(':')?;
            let (device, function) = rest.split_once('.')?;
            let address = Self {
                segment: digits(segment, 4)?,
                bus: digits(bus, 2)? as u8,
                device: digits(device, 2)? as u8,
                function: digits(function, 1)? as u8,
            };
            (address.device < 32 && address.function < 8).then_some(address)
        };
        parse().ok_or_else(|| NotAnAddress(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtual_functions_follow_on_the_bus() {
        let address: PciAddress = "0001:0a:02.6".parse().unwrap();
        let virtual_function =
            |index| address.virtual_function(index).map(|address| address.to_string());
        assert_eq!(virtual_function(0).unwrap(), "0001:0a:02.7");
        assert_eq!(virtual_function(1).unwrap(), "0001:0a:03.0");
        assert_eq!(virtual_function(232).unwrap(), "0001:0a:1f.7");
        assert_eq!((virtual_function(233), virtual_function(u16::MAX)), (None, None));
    }

    #[test]
    fn an_address_is_read_and_written_as_the_kernel_does() {
        for text in ["0000:00:1f.3", "ffff:ff:00.7", "0001:0a:02.0"] {
            assert_eq!(text.parse::<PciAddress>().unwrap().to_string(), text);
        }
        assert_eq!("0000:00:1f.3".parse::<PciAddress>().unwrap().devfn(), 0xfb);
        for text in [
            "",
            "00:1f.3",
            "0000:00:20.0",
            "0000:00:00.8",
            "0:0:0.0",
            "0000:00:+1.0",
            "0000:00:1f.3 ",
        ] {
            assert!(text.parse::<PciAddress>().is_err(), "{text:?}");
        }
    }
}
