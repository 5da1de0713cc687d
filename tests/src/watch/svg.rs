//! The picture: writes and reads per tenth of a second, by server, errors below them, over time.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use super::{Figures, What};

const WIDTH: f64 = 1200.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 20.0;
/// Of one band.
const HEIGHT: f64 = 130.0;
const GAP: f64 = 46.0;
const TOP: f64 = 60.0;
const BUCKET: Duration = Duration::from_millis(100);
/// One for each server, in the order of their appearance. Told apart by people who don't tell red from green (Okabe and Ito).
const COLOURS: [&str; 7] = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#f0e442", "#999999"];

/// Draws it. `marks`: what happened when.
pub fn draw(figures: &Figures, title: &str, marks: &[(Instant, String)]) -> String {
    let span = figures.ended.saturating_duration_since(figures.began).max(BUCKET);
    let x = |at: Instant| LEFT + at.saturating_duration_since(figures.began).as_secs_f64() / span.as_secs_f64() * (WIDTH - LEFT - RIGHT);
    let buckets = (span.as_millis() / BUCKET.as_millis()) as usize + 1;
    let bucket = |at: Instant| ((at.saturating_duration_since(figures.began).as_millis() / BUCKET.as_millis()) as usize).min(buckets - 1);
    let mut servers: Vec<&str> = Vec::new();
    let mut bands: [BTreeMap<usize, Vec<usize>>; 2] = [BTreeMap::new(), BTreeMap::new()];
    let mut errors: [Vec<(Instant, &str)>; 2] = [Vec::new(), Vec::new()];
    for event in &figures.events {
        match &event.what {
            What::Wrote { server, .. } | What::Read { server } => {
                // A read that found no row doesn't tell.
                let name = if server.is_empty() { "reads" } else { server.as_str() };
                let place = servers.iter().position(|known| *known == name).unwrap_or_else(|| {
                    servers.push(name);
                    servers.len() - 1
                });
                let band = usize::from(matches!(event.what, What::Read { .. }));
                bands[band].entry(place).or_insert_with(|| vec![0; buckets])[bucket(event.at)] += 1;
            }
            What::Failed { sqlstate, .. } => {
                errors[usize::from(event.client >= figures.writers)].push((event.at, sqlstate.as_deref().unwrap_or("-")));
            }
            What::Reconnected => {}
        }
    }
    let height = TOP + 2.0 * (HEIGHT + GAP) + 40.0;
    let mut out = format!(
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height}' font-family='sans-serif' font-size='12'>\n\
         <rect width='100%' height='100%' fill='white'/>\n<text x='{LEFT}' y='24' font-size='16'>{}</text>\n",
        escape(title)
    );
    for (place, server) in servers.iter().enumerate() {
        let at = LEFT + place as f64 * 160.0;
        let colour = COLOURS[place % COLOURS.len()];
        let _ = writeln!(
            out,
            "<rect x='{at}' y='34' width='10' height='10' fill='{colour}'/><text x='{}' y='43'>{}</text>",
            at + 14.0,
            escape(server)
        );
    }
    for (band, name) in ["writes", "reads"].into_iter().enumerate() {
        let base = TOP + band as f64 * (HEIGHT + GAP) + HEIGHT;
        let sums = (0..buckets).map(|bucket| bands[band].values().map(|counts| counts[bucket]).sum::<usize>());
        let most = sums.max().unwrap_or(0).max(1);
        let _ = writeln!(out, "<text x='{}' y='{}' text-anchor='end'>{name}/s</text>", LEFT - 8.0, base - HEIGHT / 2.0);
        let per_second = most as f64 / BUCKET.as_secs_f64();
        let _ = writeln!(out, "<text x='{}' y='{}' text-anchor='end'>{per_second:.0}</text>", LEFT - 8.0, base - HEIGHT + 10.0);
        let width = (WIDTH - LEFT - RIGHT) / buckets as f64;
        for bucket in 0..buckets {
            let mut below = 0.0;
            for (place, counts) in &bands[band] {
                let tall = counts[bucket] as f64 / most as f64 * HEIGHT;
                if tall > 0.0 {
                    let _ = writeln!(
                        out,
                        "<rect x='{:.1}' y='{:.1}' width='{width:.2}' height='{tall:.1}' fill='{}'/>",
                        LEFT + bucket as f64 * width,
                        base - below - tall,
                        COLOURS[place % COLOURS.len()]
                    );
                }
                below += tall;
            }
        }
        let _ = writeln!(out, "<line x1='{LEFT}' x2='{}' y1='{base}' y2='{base}' stroke='black'/>", WIDTH - RIGHT);
        for (at, sqlstate) in &errors[band] {
            let _ = writeln!(
                out,
                "<line x1='{0:.1}' x2='{0:.1}' y1='{1}' y2='{2}' stroke='#d00000'><title>{3}</title></line>",
                x(*at),
                base + 3.0,
                base + 13.0,
                escape(sqlstate)
            );
        }
        let _ = writeln!(
            out,
            "<text x='{}' y='{}' text-anchor='end' fill='#d00000'>{} errors</text>",
            LEFT - 8.0,
            base + 13.0,
            errors[band].len()
        );
    }
    let bottom = TOP + 2.0 * (HEIGHT + GAP);
    let seconds = span.as_secs_f64();
    let step = [1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0].into_iter().find(|step| seconds / step <= 20.0).unwrap_or(600.0);
    let mut second = 0.0;
    while second <= seconds {
        let at = LEFT + second / seconds * (WIDTH - LEFT - RIGHT);
        let _ = writeln!(out, "<text x='{at:.1}' y='{bottom}' text-anchor='middle'>{second:.0} s</text>");
        second += step;
    }
    for (at, text) in marks {
        let at = x(*at);
        let _ = writeln!(
            out,
            "<line x1='{at:.1}' x2='{at:.1}' y1='{TOP}' y2='{}' stroke='#555' stroke-dasharray='4 3'/><text x='{:.1}' y='{}'>{}</text>",
            bottom - 14.0,
            at + 4.0,
            bottom + 18.0,
            escape(text)
        );
    }
    out.push_str("</svg>\n");
    out
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('\'', "&apos;")
}
