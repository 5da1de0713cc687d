//! The smallest script that still fails: parts are taken away as long as the same kind of difference remains.

use super::objects::USERS;
use super::player::{Difference, Player};
use super::script::{End, Message, Script, Step};

/// Scripts played for one finding, at most.
const TRIES_MAX: usize = 250;

/// A finding, made as small as it gets.
pub(super) struct Shrunk {
    pub(super) script: Script,
    pub(super) difference: Difference,
    /// Whether the script failed again when it was played alone.
    pub(super) again: bool,
    pub(super) tries: usize,
}

/// # Errors
/// If a server doesn't answer any more.
pub(super) fn shrink(player: &mut Player, script: &Script, difference: Difference) -> anyhow::Result<Shrunk> {
    let kind = difference.kind;
    let mut found = Shrunk { script: script.clone(), difference, again: false, tries: 0 };
    // Once more as it is: what depends on time, or on what was before it, can't be shrunk.
    let mut fails = |script: &Script, tries: &mut usize| {
        *tries += 1;
        // A candidate that the server itself can't play is no candidate.
        player.play(script).ok().flatten().filter(|difference| difference.kind == kind)
    };
    for _ in 0..3 {
        if let Some(difference) = fails(&found.script, &mut found.tries) {
            (found.again, found.difference) = (true, difference);
            break;
        }
    }
    if !found.again {
        return Ok(found);
    }
    loop {
        let mut smaller = false;
        let mut index = 0;
        // Candidates are made anew behind each success, and gone on with from the same place.
        while let Some(candidate) = candidates(&found.script).into_iter().nth(index) {
            if found.tries >= TRIES_MAX {
                return Ok(found);
            }
            match fails(&candidate, &mut found.tries) {
                Some(difference) => (found.script, found.difference, smaller) = (candidate, difference, true),
                None => index += 1,
            }
        }
        if !smaller {
            return Ok(found);
        }
    }
}

/// Everything that is one part smaller, the largest parts first.
fn candidates(script: &Script) -> Vec<Script> {
    let mut all = Vec::new();
    let mut with = |change: &dyn Fn(&mut Script)| {
        let mut candidate = script.clone();
        change(&mut candidate);
        if candidate != *script && candidate.is_harmless() {
            all.push(candidate);
        }
    };
    let count = script.steps.len();
    for size in [count / 2, count / 4].into_iter().filter(|size| *size > 1) {
        for begin in (0..count).step_by(size) {
            with(&|script| drop(script.steps.drain(begin..(begin + size).min(count))));
        }
    }
    with(&|script| script.end = End::Terminate);
    for index in (0..count).rev() {
        with(&|script| drop(script.steps.remove(index)));
    }
    with(&|script| script.state = false);
    with(&|script| script.options.clear());
    with(&|script| script.user = USERS[0].to_owned());
    for (index, step) in script.steps.iter().enumerate() {
        let Step::Write { messages, .. } = step else { continue };
        with(&|script| {
            if let Step::Write { split, .. } = &mut script.steps[index] {
                *split = false;
            }
        });
        for fewer in fewer(messages) {
            with(&|script| {
                if let Step::Write { messages, .. } = &mut script.steps[index] {
                    messages.clone_from(&fewer);
                }
            });
        }
    }
    if let End::Behind(messages) | End::HalfClose(messages) = &script.end {
        for fewer in fewer(messages) {
            with(&|script| {
                if let End::Behind(messages) | End::HalfClose(messages) = &mut script.end {
                    messages.clone_from(&fewer);
                }
            });
        }
        let messages = messages.clone();
        with(&|script| {
            script.steps.push(Step::Write { messages: messages.clone(), split: false });
            script.end = End::Terminate;
        });
    }
    all
}

/// One message or statement fewer, or a plainer one in its place.
fn fewer(messages: &[Message]) -> Vec<Vec<Message>> {
    let mut all = Vec::new();
    for index in 0..messages.len() {
        if messages.len() > 1 {
            let mut fewer = messages.to_vec();
            fewer.remove(index);
            all.push(fewer);
        }
        match &messages[index] {
            Message::Query(texts) => {
                for statement in 0..texts.len() {
                    let mut fewer = messages.to_vec();
                    if let Message::Query(texts) = &mut fewer[index] {
                        if texts.len() > 1 {
                            texts.remove(statement);
                        } else if texts[0].len() > "SELECT 1".len() {
                            "SELECT 1".clone_into(&mut texts[0]);
                        }
                    }
                    if fewer != messages {
                        all.push(fewer);
                    }
                }
            }
            Message::Parse { text, .. } if text.len() > "SELECT 1".len() => {
                let mut plainer = messages.to_vec();
                if let Message::Parse { text, .. } = &mut plainer[index] {
                    "SELECT 1".clone_into(text);
                }
                all.push(plainer);
            }
            _ => {}
        }
    }
    all
}

/// What of a script tells it from others: its messages in order, without the names that are drawn from the same few.
pub(super) fn outline(script: &Script) -> Vec<String> {
    let mut parts: Vec<String> = script.options.iter().map(|(name, value)| format!("{name}={value}")).collect();
    if script.user != USERS[0] {
        parts.push(script.user.clone());
    }
    let mut message = |message: &Message| match message {
        Message::Query(texts) => parts.extend(texts.iter().map(|text| plain(text))),
        other => parts.push(plain(&other.to_string())),
    };
    for step in &script.steps {
        match step {
            Step::Write { messages, .. } => messages.iter().for_each(&mut message),
            Step::Alter(text) => message(&Message::Query(vec![text.clone()])),
            Step::Cancel | Step::Look | Step::Hold => {}
        }
    }
    script.end.messages().iter().for_each(&mut message);
    match script.end {
        End::Behind(_) => parts.push("behind".to_owned()),
        End::HalfClose(_) => parts.push("half-close".to_owned()),
        End::Terminate | End::Reset => {}
    }
    parts
}

/// What a difference says, without the router's own names of statements: they are others in each process and for each
/// text.
pub(super) fn signature(difference: &Difference) -> String {
    let said = difference.to_string();
    let mut parts = said.split("sy_");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out.push_str("sy_");
        out.push_str(part.trim_start_matches(|letter: char| letter.is_ascii_hexdigit()));
    }
    out
}

/// Whether all of `smaller` comes in `larger`, in that order.
pub(super) fn within(smaller: &[String], larger: &[String]) -> bool {
    let mut rest = larger.iter();
    smaller.iter().all(|part| rest.any(|other| other == part))
}

fn plain(text: &str) -> String {
    let words = text.split(' ').map(|word| match word {
        "w" => "a",
        "q" => "p",
        word => word,
    });
    words.collect::<Vec<_>>().join(" ").chars().filter(|letter| !letter.is_ascii_digit()).collect()
}
