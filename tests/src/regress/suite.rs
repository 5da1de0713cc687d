//! Where the suite comes from: Debian's source package of the installed major version, kept in a folder outside the checkout.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use crate::machine::Machine;

/// Set, it is where the sources are kept, instead of the user's cache folder.
const CACHE: &str = "SWITCHYARD_CACHE";
/// Root's: user postgres must be able to enter it.
const ROOT_CACHE: &str = "/var/cache/switchyard";

/// Debian's archives, the one with the installed minor version first. It may list sources that it doesn't serve: then the nearest minor
/// version of the main archive will do.
const ARCHIVES: [(&str, &str); 2] =
    [("https://deb.debian.org/debian-security", "{codename}-security"), ("https://deb.debian.org/debian", "{codename}")];
/// One request to an archive, in seconds: the source package has 23 MB.
const FETCH_SECONDS: &str = "300";

/// PostgreSQL has two of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `src/test/regress`: psql scripts, many at once.
    Regression,
    /// `src/test/isolation`: interleaved sessions, one specification after the other. Its driver watches who waits for whom, by process id.
    Isolation,
}

impl Kind {
    pub fn word(self) -> &'static str {
        match self {
            Kind::Regression => "regression",
            Kind::Isolation => "isolation",
        }
    }
}

/// The suite, ready to run.
#[derive(Clone, Debug)]
pub struct Suite {
    pub kind: Kind,
    /// Of the sources, such as `15.18`.
    pub version: String,
    /// `src/test/regress` of the sources: `sql/`, `expected/`, `data/` and the schedule; or `src/test/isolation`.
    pub input: PathBuf,
    /// `regress.so`, and the two libraries of contrib that the suite loads.
    pub libraries: PathBuf,
    /// Or `pg_isolation_regress`, with `isolationtester` beside it.
    pub pg_regress: PathBuf,
    pub schedule: &'static str,
}

impl Suite {
    /// Fetches and builds what isn't there yet. Waits for processes: call it where that does no harm.
    pub fn get(kind: Kind) -> anyhow::Result<Suite> {
        let machine = Machine::look()?;
        let installed = output(Command::new(machine.postgres_program("postgres")).arg("--version"))?;
        let installed = installed.split_whitespace().nth(2).context("postgres --version")?.to_owned();
        let major = installed.split('.').next().unwrap_or_default().to_owned();
        let library = PathBuf::from(config("--pkglibdir")?);
        let (program, input, schedule) = match kind {
            Kind::Regression => ("pgxs/src/test/regress/pg_regress", "src/test/regress", "parallel_schedule"),
            Kind::Isolation => ("pgxs/src/test/isolation/pg_isolation_regress", "src/test/isolation", "isolation_schedule"),
        };
        let pg_regress = library.join(program);
        if !pg_regress.is_file() {
            bail!("no {}: it belongs to the server's package", pg_regress.display());
        }
        let folder = cache()?.join(format!("postgresql-{installed}"));
        if !folder.join("complete").is_file() {
            make(&folder, &major, &library).with_context(|| format!("get the regression suite into {}", folder.display()))?;
        }
        let version = std::fs::read_to_string(folder.join("complete"))?.trim().to_owned();
        Ok(Suite { kind, version, input: folder.join(input), libraries: folder.join("lib"), pg_regress, schedule })
    }
}

/// The folder for what is fetched once. Everybody may read it.
pub fn cache() -> anyhow::Result<PathBuf> {
    let folder = match std::env::var_os(CACHE) {
        Some(folder) => PathBuf::from(folder),
        None if Machine::look()?.account.is_other() => PathBuf::from(ROOT_CACHE),
        None => match std::env::var_os("XDG_CACHE_HOME") {
            Some(folder) => PathBuf::from(folder).join("switchyard"),
            None => PathBuf::from(std::env::var_os("HOME").context("HOME isn't set")?).join(".cache/switchyard"),
        },
    };
    std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    Ok(folder)
}

/// Everything in a folder beside the final one, which is renamed when it is complete.
fn make(folder: &Path, major: &str, library: &Path) -> anyhow::Result<()> {
    let new = folder.with_extension("new");
    let _ = std::fs::remove_dir_all(&new);
    let _ = std::fs::remove_dir_all(folder);
    std::fs::create_dir_all(new.join("lib"))?;
    let version = fetch(&new, major)?;
    let regress = new.join("src/test/regress");
    output(
        Command::new("cc")
            .args(["-O2", "-fPIC", "-shared", "-w", "-I"])
            .arg(config("--includedir-server")?)
            .arg("-o")
            .arg(new.join("lib/regress.so"))
            .arg(regress.join("regress.c")),
    )
    .context("compile regress.c; the server's headers are in postgresql-server-dev")?;
    for name in ["refint.so", "autoinc.so"] {
        std::fs::copy(library.join(name), new.join("lib").join(name)).with_context(|| format!("{name} of postgresql-contrib"))?;
    }
    std::fs::write(new.join("complete"), &version)?;
    std::fs::rename(&new, folder)?;
    Ok(())
}

/// Unpacks `src/test` of the nearest source package into `folder`. The minor version that it is.
fn fetch(folder: &Path, major: &str) -> anyhow::Result<String> {
    let release = std::fs::read_to_string("/etc/os-release").context("/etc/os-release")?;
    let codename = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME=")).context("no VERSION_CODENAME: not Debian?")?;
    let mut tried = Vec::new();
    for (archive, suite) in ARCHIVES {
        match fetch_from(folder, archive, &suite.replace("{codename}", codename), major) {
            Ok(version) => return Ok(version),
            Err(error) => tried.push(format!("{archive}: {error:#}")),
        }
    }
    bail!("no archive serves the sources of PostgreSQL {major}: {}", tried.join("; "))
}

fn fetch_from(folder: &Path, archive: &str, suite: &str, major: &str) -> anyhow::Result<String> {
    let index = folder.join("Sources.xz");
    download(&format!("{archive}/dists/{suite}/main/source/Sources.xz"), &index)?;
    let sources = output(Command::new("xz").args(["-dc"]).arg(&index))?;
    std::fs::remove_file(index)?;
    let package = sources.split("\n\n").find(|package| package.lines().any(|line| line == format!("Package: postgresql-{major}")));
    let package = package.context("not in its index")?;
    let directory = package.lines().find_map(|line| line.strip_prefix("Directory: ")).context("no Directory")?;
    // The last list is the one of SHA-256 sums: "Checksums-Sha256:", then a line for each file.
    let sums = package.split("Checksums-Sha256:").nth(1).context("no SHA-256 sums")?;
    let mut words = sums.split_whitespace();
    let (sum, name) = loop {
        let (Some(sum), Some(_size), Some(name)) = (words.next(), words.next(), words.next()) else { bail!("no sources in its index") };
        if name.contains(".orig.tar.") {
            break (sum, name);
        }
    };
    let tarball = folder.join(name);
    download(&format!("{archive}/{directory}/{name}"), &tarball)?;
    let found = output(Command::new("sha256sum").arg(&tarball))?;
    if !found.starts_with(sum) {
        bail!("{name} isn't what its index says: SHA-256 {found}");
    }
    output(Command::new("tar").arg("-xf").arg(&tarball).arg("-C").arg(folder).args([
        "--no-same-owner",
        "--strip-components=1",
        "--wildcards",
        "*/src/test/regress",
        "*/src/test/isolation",
    ]))?;
    std::fs::remove_file(&tarball)?;
    let version = name.split('_').nth(1).and_then(|rest| rest.split(".orig").next()).context("a version")?;
    Ok(version.to_owned())
}

fn download(url: &str, to: &Path) -> anyhow::Result<()> {
    output(Command::new("curl").args(["-sSfL", "--max-time", FETCH_SECONDS, "-o"]).arg(to).arg(url)).map(drop)
}

fn config(what: &str) -> anyhow::Result<String> {
    Ok(output(Command::new(Machine::look()?.postgres_program("pg_config")).arg(what))?.trim().to_owned())
}

/// Runs it to its end; what it wrote, or an error with what it complained of.
fn output(command: &mut Command) -> anyhow::Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().with_context(|| program.clone())?;
    if !output.status.success() {
        bail!("{program}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
