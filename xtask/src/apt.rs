//! Getting packages from the machine's Debian mirror without touching the
//! machine's apt configuration, lists or cache.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Result, command};

/// Where packages come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mirror {
    pub(crate) uri: String,
    pub(crate) signed_by: Option<String>,
    suites: Vec<String>,
}

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

impl Mirror {
    /// The mirror of the Debian archive in the machine's apt sources.
    pub(crate) fn of_this_machine() -> Result<Self> {
        let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
        if let Ok(entries) = std::fs::read_dir("/etc/apt/sources.list.d") {
            files.extend(entries.flatten().map(|entry| entry.path()));
        }
        files.sort();
        let mirrors = files.iter().flat_map(|file| {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            match file.extension().and_then(|extension| extension.to_str()) {
                Some("sources") => parse_deb822(&text),
                Some("list") => parse_list(&text),
                _ => Vec::new(),
            }
        });
        archive(mirrors.collect()).ok_or_else(|| {
            "no Debian mirror in /etc/apt/sources.list or /etc/apt/sources.list.d".into()
        })
    }
}

/// The mirror of the archive proper: not of security updates, not a vendor's.
fn archive(mirrors: Vec<Mirror>) -> Option<Mirror> {
    let is_archive = |mirror: &&Mirror| {
        let main = |suite: &String| !suite.contains("security") && !suite.contains('/');
        let path = mirror.uri.trim_end_matches('/');
        path.rsplit('/').next() == Some("debian") && mirror.suites.iter().any(main)
    };
    mirrors.iter().find(is_archive).cloned()
}

/// Sources in the format of `sources.list`: one in a line.
fn parse_list(text: &str) -> Vec<Mirror> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or(""));
    lines
        .filter_map(|line| {
            let mut rest = line.trim().strip_prefix("deb ")?.trim();
            let mut signed_by = None;
            if let Some(bracket) = rest.strip_prefix('[') {
                let (options, after) = bracket.split_once(']')?;
                let mut options = options.split_whitespace();
                signed_by = options.find_map(|option| option.strip_prefix("signed-by="));
                rest = after.trim();
            }
            let mut words = rest.split_whitespace();
            Some(Mirror {
                uri: words.next()?.to_owned(),
                suites: vec![words.next()?.to_owned()],
                signed_by: signed_by.map(str::to_owned),
            })
        })
        .collect()
}

/// Sources in deb822 format: paragraphs of fields, a field continued on lines
/// that begin with a blank.
fn parse_deb822(text: &str) -> Vec<Mirror> {
    let mut mirrors = Vec::new();
    let mut fields: Vec<(String, String)> = Vec::new();
    let end = std::iter::once("");
    for line in text.lines().chain(end) {
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            mirrors.extend(from_fields(&fields));
            fields.clear();
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = fields.last_mut() {
                value.push('\n');
                value.push_str(line.trim());
            }
        } else if let Some((name, value)) = line.split_once(':') {
            fields.push((name.trim().to_lowercase(), value.trim().to_owned()));
        }
    }
    mirrors
}

fn from_fields(fields: &[(String, String)]) -> Vec<Mirror> {
    let field = |name: &str| {
        let found = fields.iter().find(|(field, _)| field == name);
        found.map_or("", |(_, value)| value.as_str())
    };
    if matches!(field("enabled"), "no" | "false") {
        return Vec::new();
    }
    if !field("types").split_whitespace().any(|kind| kind == "deb") {
        return Vec::new();
    }
    let suites: Vec<_> = field("suites").split_whitespace().map(str::to_owned).collect();
    // A key may also stand in the field itself; apt then gets no file from us.
    let signed_by = Some(field("signed-by")).filter(|keyring| keyring.starts_with('/'));
    let uris = field("uris").split_whitespace();
    uris.map(|uri| Mirror {
        uri: uri.to_owned(),
        signed_by: signed_by.map(str::to_owned),
        suites: suites.clone(),
    })
    .collect()
}

/// apt with a state of its own in a directory.
pub(crate) struct Apt {
    directory: PathBuf,
}

impl Apt {
    /// Reads the package lists of `suites` of `mirror` into `directory`.
    pub(crate) fn update(mirror: &Mirror, suites: &[&str], directory: &Path) -> Result<Self> {
        for part in ["lists/partial", "cache/archives/partial"] {
            std::fs::create_dir_all(directory.join(part))?;
        }
        let keyring = match &mirror.signed_by {
            Some(keyring) => Some(keyring.as_str()),
            None => Some(KEYRING).filter(|keyring| Path::new(keyring).exists()),
        };
        let signed_by = keyring.map_or(String::new(), |keyring| format!("Signed-By: {keyring}\n"));
        std::fs::write(
            directory.join("mirror.sources"),
            format!(
                "Types: deb\nURIs: {}\nSuites: {}\nComponents: main\n{signed_by}",
                mirror.uri,
                suites.join(" ")
            ),
        )?;
        let apt = Self { directory: directory.to_owned() };
        command::output(apt.command("apt-get").args(["--error-on=any", "update"]))?;
        Ok(apt)
    }

    /// The newest `(package, version)` among those whose name begins with `prefix`
    /// and goes on with a number, `preferred` before all others.
    pub(crate) fn newest(&self, prefix: &str, preferred: &str) -> Result<Option<(String, String)>> {
        let names = command::output(self.command("apt-cache").args(["pkgnames", prefix]))?;
        let Some(package) = pick(names.lines(), prefix, preferred) else {
            return Ok(None);
        };
        let policy = command::output(self.command("apt-cache").args(["madison", &package]))?;
        let version = policy.lines().next().and_then(|line| line.split('|').nth(1));
        let version = version.ok_or_else(|| format!("apt knows no version of {package}"))?;
        Ok(Some((package, version.trim().to_owned())))
    }

    /// Downloads a package, of a version or the newest, and returns the file. apt checks its hash.
    pub(crate) fn download(&self, package: &str, version: Option<&str>) -> Result<PathBuf> {
        let wanted =
            version.map_or_else(|| package.to_owned(), |version| format!("{package}={version}"));
        command::output(self.command("apt-get").args(["download", &wanted]))?;
        let entries = std::fs::read_dir(&self.directory)?.flatten();
        let mut files = entries.map(|entry| entry.path());
        let file = files.find(|file| file.extension().is_some_and(|extension| extension == "deb"));
        file.ok_or_else(|| format!("apt did not leave the file of {package}").into())
    }

    /// Downloads packages, of `suite` if it has them, and what they need that the machine does not have; the files.
    /// Nothing is installed.
    pub(crate) fn download_with_needs(
        &self,
        suite: &str,
        packages: &[&str],
    ) -> Result<Vec<PathBuf>> {
        let mut apt = self.command("apt-get");
        apt.args([
            "--yes",
            "--no-install-recommends",
            "--download-only",
            "-o",
            "Debug::NoLocking=1",
        ]);
        command::output(apt.args(["-t", suite, "install", "--reinstall"]).args(packages))?;
        let archives = std::fs::read_dir(self.directory.join("cache/archives"))?.flatten();
        let files = archives.map(|entry| entry.path());
        Ok(files.filter(|file| file.extension().is_some_and(|kind| kind == "deb")).collect())
    }

    /// The first package that a package depends on and that has this prefix: what stands behind a name that changes.
    pub(crate) fn dependency(&self, package: &str, prefix: &str) -> Result<String> {
        let text = command::output(self.command("apt-cache").args(["depends", package]))?;
        let mut needed = text.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
        let found = needed.find(|name| name.starts_with(prefix)).map(str::to_owned);
        found.ok_or_else(|| format!("{package} depends on no {prefix}*").into())
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let directory = self.directory.display();
        command.current_dir(&self.directory).env("LC_ALL", "C");
        for option in [
            format!("Dir::Etc::SourceList={directory}/mirror.sources"),
            "Dir::Etc::SourceParts=-".to_owned(),
            format!("Dir::State::Lists={directory}/lists"),
            format!("Dir::Cache={directory}/cache"),
            // The directory may be one that apt's own user cannot enter.
            "APT::Sandbox::User=root".to_owned(),
        ] {
            command.args(["-o", &option]);
        }
        command
    }
}

/// `preferred` if it is there, else the name with the highest number.
fn pick<'a>(names: impl Iterator<Item = &'a str>, prefix: &str, preferred: &str) -> Option<String> {
    let number = |name: &str| {
        let parts = name.strip_prefix(prefix)?.split('.');
        parts.map(|part| part.parse::<u32>().ok()).collect::<Option<Vec<_>>>()
    };
    let numbered = names.filter_map(|name| Some((name == preferred, number(name)?, name)));
    numbered.max().map(|(_, _, name)| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mirror(uri: &str, suites: &[&str], signed_by: Option<&str>) -> Mirror {
        Mirror {
            uri: uri.to_owned(),
            suites: suites.iter().map(|&suite| suite.to_owned()).collect(),
            signed_by: signed_by.map(str::to_owned),
        }
    }

    #[test]
    fn deb822_paragraphs_become_mirrors() {
        let parsed = parse_deb822(
            "# a comment\n\
             Types: deb deb-src\n\
             # within a paragraph\n\
             URIs: http://one.example/debian http://two.example/debian/\n\
             Suites: bookworm\n bookworm-updates\n\
             Components: main\n\
             Signed-By: /usr/share/keyrings/a.gpg\n\
             \n\
             Enabled: no\nTypes: deb\nURIs: http://off.example/debian\nSuites: sid\n\
             \n\
             Types: deb-src\nURIs: http://src.example/debian\nSuites: sid\n\
             \n\
             types: deb\nuris: http://keys.example/debian\nsuites: sid\n\
             Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n",
        );
        let suites = ["bookworm", "bookworm-updates"];
        let keyring = Some("/usr/share/keyrings/a.gpg");
        assert_eq!(
            parsed,
            [
                mirror("http://one.example/debian", &suites, keyring),
                mirror("http://two.example/debian/", &suites, keyring),
                mirror("http://keys.example/debian", &["sid"], None),
            ]
        );
    }

    #[test]
    fn one_line_sources_become_mirrors() {
        let parsed = parse_list(
            "# deb http://off.example/debian sid main\n\
             deb-src http://src.example/debian bookworm main\n\
             deb http://one.example/debian bookworm main contrib # why\n\
             deb [arch=amd64 signed-by=/k.gpg] http://two.example/debian sid main\n\
             deb\n\
             deb [arch=amd64 http://broken.example/debian sid main\n",
        );
        assert_eq!(
            parsed,
            [
                mirror("http://one.example/debian", &["bookworm"], None),
                mirror("http://two.example/debian", &["sid"], Some("/k.gpg")),
            ]
        );
    }

    #[test]
    fn the_archive_is_told_from_security_updates_and_vendors() {
        let security = mirror("http://a.example/debian-security", &["bookworm-security"], None);
        let merged = mirror("http://a.example/debian", &["bookworm-security"], None);
        let vendor = mirror("https://vendor.example/apt", &["stable"], None);
        let debian = mirror("http://a.example/debian/", &["bookworm"], None);
        let all = vec![security, merged, vendor, debian.clone()];
        assert_eq!(archive(all.clone()), Some(debian));
        assert_eq!(archive(all[..3].to_vec()), None);
    }

    #[test]
    fn the_preferred_source_wins_and_then_the_newest() {
        let pick =
            |names: &[&str]| pick(names.iter().copied(), "linux-source-7.", "linux-source-7.3");
        let old = "linux-source-7.2";
        let new = "linux-source-7.10";
        assert_eq!(pick(&[new, "linux-source-7.3"]).unwrap(), "linux-source-7.3");
        assert_eq!(pick(&[new, old, "linux-source-rt", "linux-source-7.x"]).unwrap(), new);
        assert_eq!(pick(&["linux-source", "linux-source-6.12"]), None);
    }
}
