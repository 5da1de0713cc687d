//! `[patroni]` and `[control]`: what operators may tell the router to do, and what the router may ask of Patroni.

use super::{Resolver, place_of, text};
use crate::model::{Control, Patroni};
use crate::raw::{RawControl, RawPatroni};

/// A token is a password that nobody types: shorter than this it could be guessed over the network.
const TOKEN_BYTES_MIN: usize = 16;

impl Resolver {
    pub(super) fn patroni(&mut self, raw: RawPatroni) -> Patroni {
        let password_place = place_of(&raw.password).or(place_of(&raw.password_file));
        match (place_of(&raw.username), password_place) {
            (Some(place), None) => self.problem(place, "patroni.username", "is given without patroni.password or patroni.password_file"),
            (None, Some(place)) => self.problem(place, "patroni.password", "is given without patroni.username"),
            (None, None) | (Some(_), Some(_)) => {}
        }
        if let Some(username) = &raw.username
            && username.value.0.contains(':')
        {
            // RFC 7617, section 2.
            self.problem(
                username.place.clone(),
                "patroni.username",
                "must not hold a colon: HTTP's basic authentication ends the name there",
            );
        }
        let password = self.password("patroni", raw.password, raw.password_file);
        Patroni { username: text(raw.username), password }
    }

    pub(super) fn control(&mut self, raw: RawControl) -> Control {
        let place = place_of(&raw.token).or(place_of(&raw.token_file));
        let token = self.secret("control.token", raw.token, raw.token_file);
        if let (Some(token), Some(place)) = (&token, place) {
            let visible = token.expose().bytes().all(|byte| byte.is_ascii_graphic());
            if token.expose().len() < TOKEN_BYTES_MIN || !visible {
                let text = format!("must have at least {TOKEN_BYTES_MIN} visible ASCII characters, without spaces");
                self.problem(place, "control.token", text);
            }
        }
        Control { token }
    }
}
