//! What is wrong with a configuration, and where: file, line and column, or the environment variable.
//!
//! Invariant: a problem names the key by its full path, and never shows a password.

use std::fmt;
use std::sync::Arc;

/// Where a value was written, or should have been. Sorts as a reader would go through it: the file from top to bottom, then the
/// environment.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A position in the file; line and column count from 1, columns in characters.
    File { file: Arc<str>, line: usize, column: usize },
    /// The file as a whole: it can't be read, or lacks something.
    WholeFile { file: Arc<str> },
    /// An environment variable.
    Variable { name: String },
    /// Neither file nor variable: something is missing, and no file was given.
    Nowhere,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::File { file, line, column } => write!(f, "{file}:{line}:{column}"),
            Place::WholeFile { file } => f.write_str(file),
            Place::Variable { name } => write!(f, "environment variable {name}"),
            Place::Nowhere => f.write_str("configuration"),
        }
    }
}

/// One mistake (or, among [`Loaded::warnings`](crate::Loaded::warnings), one doubt).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    pub place: Place,
    /// The key's full path, such as `pool.max_size` or `auth[2].method`. Empty where no key is at fault (syntax, unreadable file).
    pub key: String,
    /// What was expected, and what was found.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.text)
    }
}

/// Everything that is wrong with a configuration, in the order in which a reader would meet it. Displays as one line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    pub(crate) fn new(mut list: Vec<Problem>) -> Problems {
        list.sort();
        list.dedup();
        Problems(list)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }

    pub fn count(&self) -> usize {
        self.0.len()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// The known word that `word` was most likely meant to be.
pub(crate) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Names may be of any length in a hostile file; the distance costs their product.
    const LONGEST_COMPARED: usize = 64;
    if word.len() > LONGEST_COMPARED {
        return None;
    }
    let word = word.to_lowercase().replace('-', "_");
    let allowed = (word.chars().count() / 3).max(1);
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&word, &candidate.to_lowercase()), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}
