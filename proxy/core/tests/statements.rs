//! The fuzz target's properties over its kept corpus and the routing corpora, and over mutations of them: what stable Rust can run of it in a
//! few seconds. `cargo +nightly fuzz run statements` (in proxy/core) does it for as long as you like.

#![allow(missing_docs, clippy::disallowed_methods, reason = "a test, which reads its corpus")]

#[path = "../fuzz/properties.rs"]
#[allow(unreachable_pub, reason = "the fuzz target's, too")]
mod properties;

use std::path::Path;

use properties::Properties;

/// Mutations of each text, in one run of the tests.
const MUTATIONS: usize = 12;
/// Of the texts' pieces that mutations take from each other, in bytes.
const PIECE_MAX: u64 = 40;

fn corpus() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut texts = Vec::new();
    let mut files: Vec<_> = std::fs::read_dir(folder.join("fuzz/corpus/statements")).expect("the kept corpus").flatten().collect();
    files.sort_by_key(std::fs::DirEntry::file_name);
    texts.extend(files.iter().map(|file| std::fs::read(file.path()).expect("a file of the corpus")));
    assert!(texts.len() > 100, "the kept corpus is gone");
    for rows in [include_str!("../corpus/routing.tsv"), include_str!("../corpus/forms.tsv")] {
        let statements = rows.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.splitn(3, '\t').nth(2));
        texts.extend(statements.map(|sql| sql.replace("\\n", "\n").into_bytes()));
    }
    texts
}

/// SplitMix64: the same mutations in each run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % limit.max(1) as u64) as usize
    }

    fn piece(&mut self, text: &[u8]) -> std::ops::Range<usize> {
        let start = self.below(text.len() + 1);
        start..(start + self.below(PIECE_MAX as usize)).min(text.len())
    }
}

fn mutated(texts: &[Vec<u8>], text: &[u8], dice: &mut Dice) -> Vec<u8> {
    const SPICES: [&[u8]; 16] =
        [b"'", b"\"", b"$$", b"$a$", b"/*", b"*/", b"--", b"\\", b"E'", b"U&'", b"\n", b";", b"(", b")", b"\0", b"\xc3"];
    let mut text = text.to_vec();
    for _ in 0..=dice.below(3) {
        let at = dice.piece(&text);
        match dice.below(4) {
            0 => drop(text.drain(at)),
            1 => {
                let other = &texts[dice.below(texts.len())];
                let piece = other[dice.piece(other)].to_vec();
                drop(text.splice(at, piece));
            }
            2 => drop(text.splice(at.start..at.start, SPICES[dice.below(SPICES.len())].iter().copied())),
            _ => {
                let piece = text[at.clone()].to_vec();
                drop(text.splice(at.start..at.start, piece));
            }
        }
    }
    text
}

#[test]
fn every_text_has_the_properties() {
    let texts = corpus();
    let mut properties = Properties::new();
    let mut dice = Dice(1);
    for text in &texts {
        properties.hold(text);
    }
    for text in &texts {
        for _ in 0..MUTATIONS {
            properties.hold(&mutated(&texts, text, &mut dice));
        }
    }
}
