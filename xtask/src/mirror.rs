//! The Debian mirror that apt is set up with here, and an apt of our own that uses it.
//!
//! The machine's own sources and lists are read, never changed: ours are in the target directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::run;
use crate::workspace::Workspace;

/// Fetching the lists of one suite, or some packages.
const LIMIT: Duration = Duration::from_mins(10);
const APT: &str = "/etc/apt";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A mirror of Debian's main archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    uri: String,
    /// A keyring file; apt's trusted keys without it.
    signed_by: Option<String>,
}

impl Mirror {
    /// Finds it in the machine's apt sources.
    pub fn find() -> Result<Self> {
        let mut files = vec![Path::new(APT).join("sources.list")];
        let more = fs::read_dir(Path::new(APT).join("sources.list.d"));
        files.extend(more.into_iter().flatten().flatten().map(|entry| entry.path()));
        for file in &files {
            let text = fs::read_to_string(file).unwrap_or_default();
            let found = match file.extension().and_then(|extension| extension.to_str()) {
                Some("sources") => from_deb822(&text),
                Some("list") => from_list(&text),
                _ => None,
            };
            if let Some(mirror) = found {
                return Ok(mirror);
            }
        }
        bail!(
            "no mirror of Debian in {APT}/sources.list and {APT}/sources.list.d: Debian's kernels and sources are fetched \
             with apt, which needs a Debian machine with a mirror set up"
        )
    }

    fn sources(&self, suite: &str) -> String {
        let key = match &self.signed_by {
            Some(key) => key.clone(),
            None => KEYRING.to_owned(),
        };
        format!("Types: deb deb-src\nURIs: {}\nSuites: {suite}\nComponents: main\nSigned-By: {key}\n", self.uri)
    }
}

/// apt for one suite of the mirror.
pub struct Suite<'a> {
    workspace: &'a Workspace,
    name: &'a str,
    dir: PathBuf,
}

impl<'a> Suite<'a> {
    /// Sets it up and fetches its lists.
    pub fn open(workspace: &'a Workspace, mirror: &Mirror, name: &'a str) -> Result<Self> {
        let dir = workspace.own("apt").join(name);
        for sub in ["etc/sources.list.d", "etc/preferences.d", "state/lists/partial", "cache/archives/partial"] {
            let sub = dir.join(sub);
            fs::create_dir_all(&sub).with_context(|| format!("create {}", sub.display()))?;
        }
        let sources = dir.join("etc/sources.list.d/mirror.sources");
        fs::write(&sources, mirror.sources(name)).with_context(|| format!("write {}", sources.display()))?;
        let suite = Self { workspace, name, dir };
        run::quietly(workspace, &format!("apt-{name}"), suite.apt("apt-get").arg("update"), LIMIT)
            .with_context(|| format!("fetch the package lists of {name} from {}", mirror.uri))?;
        Ok(suite)
    }

    /// A package and everything it depends on, by name.
    pub fn depends(&self, package: &str) -> Result<Vec<String>> {
        let mut command = self.apt("apt-cache");
        command.args(["depends", "--recurse", "--no-recommends", "--no-suggests", "--no-conflicts", "--no-breaks"]);
        command.args(["--no-replaces", "--no-enhances", package]);
        let text = run::output(&mut command).with_context(|| format!("look for {package} in {}", self.name))?;
        Ok(text
            .lines()
            .filter(|line| line.starts_with(|c: char| c.is_ascii_alphanumeric()))
            .map(str::to_owned)
            .collect())
    }

    /// Fetches packages and unpacks them into a directory.
    pub fn unpack(&self, packages: &[String], into: &Path) -> Result<()> {
        let debs = self.dir.join("debs");
        drop(fs::remove_dir_all(&debs));
        fs::create_dir_all(&debs).with_context(|| format!("create {}", debs.display()))?;
        let mut command = self.apt("apt-get");
        command.arg("download").args(packages).current_dir(&debs);
        run::quietly(self.workspace, &format!("apt-{}", self.name), &mut command, LIMIT)
            .with_context(|| format!("fetch {} from {}", packages.join(", "), self.name))?;
        for deb in fs::read_dir(&debs).with_context(|| format!("list {}", debs.display()))?.flatten() {
            run::output(Command::new("dpkg").arg("-x").arg(deb.path()).arg(into))?;
        }
        fs::remove_dir_all(&debs).with_context(|| format!("remove {}", debs.display()))
    }

    /// Fetches the source of a package and unpacks it, with Debian's patches, as this directory, which must not exist.
    pub fn source(&self, package: &str, into: &Path) -> Result<()> {
        let files = self.dir.join("sources");
        drop(fs::remove_dir_all(&files));
        fs::create_dir_all(&files).with_context(|| format!("create {}", files.display()))?;
        let mut command = self.apt("apt-get");
        command.args(["source", "--download-only", package]).current_dir(&files);
        run::quietly(self.workspace, &format!("apt-{}", self.name), &mut command, LIMIT)
            .with_context(|| format!("fetch the source of {package} from {}", self.name))?;
        let listed = fs::read_dir(&files).with_context(|| format!("list {}", files.display()))?.flatten();
        let mut paths = listed.map(|entry| entry.path());
        let description = paths
            .find(|path| path.extension().is_some_and(|extension| extension == "dsc"))
            .with_context(|| format!("the source of {package} has no description (.dsc)"))?;
        let mut unpack = Command::new("dpkg-source");
        unpack.arg("-x").arg(description).arg(into);
        run::quietly(self.workspace, &format!("source-{package}"), &mut unpack, LIMIT)
            .with_context(|| format!("unpack the source of {package}"))?;
        fs::remove_dir_all(&files).with_context(|| format!("remove {}", files.display()))
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let option = |name: &str, value: &Path| format!("{name}={}", value.display());
        for setting in [
            option("Dir::Etc", &self.dir.join("etc")),
            option("Dir::Etc::sourcelist", Path::new("/dev/null")),
            option("Dir::State", &self.dir.join("state")),
            option("Dir::State::status", Path::new("/dev/null")),
            option("Dir::Cache", &self.dir.join("cache")),
            "Acquire::Languages=none".into(),
            // Old suites are not signed anew, and the sandbox user cannot write into a person's directory.
            "Acquire::Check-Valid-Until=false".into(),
            "APT::Sandbox::User=".into(),
            "APT::Architecture=amd64".into(),
        ] {
            command.args(["-o", &setting]);
        }
        command
    }
}

/// `deb [signed-by=…] http://deb.debian.org/debian bookworm main`
fn from_list(text: &str) -> Option<Mirror> {
    text.lines().find_map(|line| {
        let rest = line.trim().strip_prefix("deb ")?.trim();
        let (options, rest) = match rest.strip_prefix('[') {
            Some(rest) => rest.split_once(']')?,
            None => ("", rest),
        };
        let uri = rest.split_whitespace().next().filter(|uri| is_main_archive(uri))?;
        let signed_by = options.split_whitespace().find_map(|option| option.strip_prefix("signed-by="));
        Some(Mirror { uri: uri.to_owned(), signed_by: signed_by.map(str::to_owned) })
    })
}

/// Stanzas with `Types`, `URIs`, `Signed-By`.
fn from_deb822(text: &str) -> Option<Mirror> {
    text.split("\n\n").find_map(|stanza| {
        let field = |name: &str| {
            let mut lines = stanza.lines().filter(|line| !line.starts_with('#'));
            lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
        };
        let uri = field("URIs")?.split_whitespace().find(|uri| is_main_archive(uri))?;
        let usable = field("Types")?.split_whitespace().any(|kind| kind == "deb") && field("Enabled") != Some("no");
        // A key may also stand in the file itself; then the archive's keyring does.
        let signed_by = field("Signed-By").filter(|key| key.starts_with('/')).map(str::to_owned);
        usable.then(|| Mirror { uri: uri.to_owned(), signed_by })
    })
}

/// Neither the security archive nor somebody else's.
fn is_main_archive(uri: &str) -> bool {
    uri.trim_end_matches('/').ends_with("/debian")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_forms_and_skips_other_archives() {
        let deb822 = "Types: deb\nURIs: http://example.net/debian-security\nSuites: x\n\nTypes: deb\n# old\nURIs: \
                      http://example.net/debian/\nSuites: bookworm\nSigned-By: /k.gpg\n";
        let mirror = Mirror { uri: "http://example.net/debian/".into(), signed_by: Some("/k.gpg".into()) };
        assert_eq!(from_deb822(deb822), Some(mirror));
        let list = "# deb http://no/debian x\ndeb http://sec/debian-security x main\ndeb [arch=amd64 signed-by=/k] \
                    http://m/debian bookworm main\n";
        assert_eq!(from_list(list), Some(Mirror { uri: "http://m/debian".into(), signed_by: Some("/k".into()) }));
        assert_eq!(from_list("deb http://m/ubuntu noble main\n"), None);
    }

    #[test]
    fn a_disabled_source_is_not_used() {
        assert_eq!(from_deb822("Enabled: no\nTypes: deb\nURIs: http://m/debian\n"), None);
    }
}
