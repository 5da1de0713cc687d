//! Two runs' output files, side by side.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::Context;

/// An output file that the runs don't agree on.
#[derive(Clone, Debug)]
pub struct Difference {
    /// Without `.out`.
    pub name: String,
    /// Lines that only one of the two has.
    pub lines: usize,
    /// As `diff -u` tells it.
    pub diff: String,
}

/// What a comparison gave.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    pub files: usize,
    pub differences: Vec<Difference>,
}

/// Compares all `.out` files of two folders. One that only one of them has differs as well.
pub fn compare(direct: &Path, routed: &Path) -> anyhow::Result<Comparison> {
    let mut names = BTreeSet::new();
    for folder in [direct, routed] {
        for entry in std::fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            names.extend(name.strip_suffix(".out").map(str::to_owned));
        }
    }
    let mut comparison = Comparison { files: names.len(), ..Comparison::default() };
    for name in names {
        let (one, other) = (direct.join(format!("{name}.out")), routed.join(format!("{name}.out")));
        // Outputs may hold bytes that aren't UTF-8.
        if let (Ok(one), Ok(other)) = (std::fs::read(&one), std::fs::read(&other))
            && one == other
        {
            continue;
        }
        let told = Command::new("diff")
            .args(["-u", "-a", "-N", "--label", &format!("direct/{name}.out"), "--label", &format!("routed/{name}.out")])
            .args([&one, &other])
            .output()
            .context("diff")?;
        let diff = String::from_utf8_lossy(&told.stdout).into_owned();
        let lines = diff.lines().skip(2).filter(|line| line.starts_with(['+', '-'])).count();
        comparison.differences.push(Difference { name, lines, diff });
    }
    Ok(comparison)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_named_and_shown() {
        let base = std::env::temp_dir().join(format!("switchyard-compare-{}", std::process::id()));
        let (direct, routed) = (base.join("direct"), base.join("routed"));
        for (folder, files) in [(&direct, [("same", "a\n"), ("other", "a\nb\n")]), (&routed, [("same", "a\n"), ("other", "a\nc\n")])] {
            std::fs::create_dir_all(folder).expect("a folder");
            for (name, text) in files {
                std::fs::write(folder.join(format!("{name}.out")), text).expect("a file");
            }
        }
        std::fs::write(direct.join("missing.out"), "a\n").expect("a file");
        let comparison = compare(&direct, &routed);
        let _ = std::fs::remove_dir_all(&base);
        let comparison = comparison.expect("a comparison");
        assert_eq!(comparison.files, 3);
        let found: Vec<_> = comparison.differences.iter().map(|difference| (difference.name.as_str(), difference.lines)).collect();
        assert_eq!(found, [("missing", 1), ("other", 2)]);
        assert!(comparison.differences[1].diff.contains("-b\n+c\n"));
    }
}
