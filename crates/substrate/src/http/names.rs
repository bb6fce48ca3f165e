//! Names and numbers as clients write them: models, scopes, routes, sizes, durations and times.
//!
//! All pure; the wall clock comes in as an argument.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use substrate_record::Scope;

use super::error::{Refusal, clipped};
use crate::door::Route;

/// Longest model name: Ollama's host (350) and three parts of 80 with their separators.
const MAX_NAME: usize = 600;

/// A model's name as asked, checked only as far as its length and characters.
pub(super) fn model_name(param: &str, name: &str) -> Result<String, Refusal> {
    let name = name.trim();
    if name.is_empty() {
        return Err(Refusal::invalid(param, format!("{param} is required")));
    }
    let fits = name.len() <= MAX_NAME && name.chars().all(|c| c.is_ascii_graphic());
    if !fits {
        return Err(Refusal::invalid(
            param,
            format!("invalid model name '{}'", clipped(name)),
        ));
    }
    Ok(name.to_owned())
}

/// Whether `asked` names the model listed as `listed`; the tag `latest` may be left out.
pub(super) fn same_model(listed: &str, asked: &str) -> bool {
    fn whole(name: &str) -> &str {
        name.strip_suffix(":latest").unwrap_or(name)
    }
    whole(listed).eq_ignore_ascii_case(whole(asked))
}

/// How many resembling names an error offers.
const MAX_HINTS: usize = 3;

/// Listed names that resemble `asked`, nearest first.
pub(super) fn similar<'a>(asked: &str, listed: impl Iterator<Item = &'a str>) -> Vec<String> {
    let asked: String = asked.to_ascii_lowercase().chars().take(80).collect();
    let stem = asked.split(':').next().unwrap_or(&asked);
    let mut near: Vec<(usize, String)> = listed
        .filter_map(|name| {
            let lower = name.to_ascii_lowercase();
            let apart =
                edits(&asked, &lower).min(edits(stem, lower.split(':').next().unwrap_or(&lower)));
            let close = apart <= stem.len() / 3
                || lower.contains(stem)
                || asked.contains(lower.split(':').next()?);
            close.then(|| (apart, name.to_owned()))
        })
        .collect();
    near.sort();
    near.into_iter()
        .map(|(_, name)| name)
        .take(MAX_HINTS)
        .collect()
}

/// Levenshtein distance in bytes.
fn edits(a: &str, b: &str) -> usize {
    let b = b.as_bytes();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let swap = corner + usize::from(x != *y);
            corner = row[j + 1];
            row[j + 1] = swap.min(row[j] + 1).min(corner + 1);
        }
    }
    row[b.len()]
}

pub(super) fn scope_name(scope: Scope) -> &'static str {
    match scope {
        Scope::Mine => "mine",
        Scope::Circle => "circle",
        Scope::Commons => "commons",
    }
}

pub(super) fn parse_scope(name: &str) -> Option<Scope> {
    match name.trim() {
        "mine" => Some(Scope::Mine),
        "circle" => Some(Scope::Circle),
        "commons" => Some(Scope::Commons),
        _ => None,
    }
}

pub(super) fn route_name(route: Route) -> &'static str {
    match route {
        Route::Local => "local",
        Route::Direct => "direct",
        Route::Relayed => "relayed",
    }
}

/// `135M`, `7.6B`, or nothing if the count is unknown.
pub(super) fn parameter_size(n: u64) -> String {
    let scaled = |unit: u64, letter: char| {
        let tenths = (n * 10 + unit / 2) / unit;
        match tenths % 10 {
            0 => format!("{}{letter}", tenths / 10),
            rest => format!("{}.{rest}{letter}", tenths / 10),
        }
    };
    match n {
        0 => String::new(),
        1..=999_999 => scaled(1_000, 'K'),
        1_000_000..=999_999_999 => scaled(1_000_000, 'M'),
        // Beyond any model there is; keeps the product above from overflowing.
        1_000_000_000..=999_999_999_999_999 => scaled(1_000_000_000, 'B'),
        _ => String::new(),
    }
}

/// RFC 3339 with a fraction, as Ollama's clients parse it.
pub(super) fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_nanos(time).to_string()
}

/// The same, from Unix milliseconds. A time no calendar holds becomes the epoch.
pub(super) fn rfc3339_ms(unix_ms: u64) -> String {
    /// The last second `humantime` can write, 9999-12-31.
    const LAST_MS: u64 = 253_402_300_799_000;
    let since = Duration::from_millis(if unix_ms > LAST_MS { 0 } else { unix_ms });
    rfc3339(UNIX_EPOCH + since)
}

/// Seconds since the epoch, as OpenAI's `created`.
pub(super) fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// A Go duration (`10m`, `1h30m`, `-1s`, `1.5h`) in milliseconds, as Ollama's `keep_alive` takes it.
pub(super) fn go_duration_ms(text: &str) -> Option<i64> {
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, unit) = rest.split_at(digits);
        let letters = unit
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(unit.len());
        let (unit, next) = unit.split_at(letters);
        total += number.parse::<f64>().ok()? * unit_ms(unit)?;
        rest = next;
    }
    let ms = sign * total;
    // `as` saturates; a Go duration holds 292 years at most.
    (!text.is_empty() && ms.abs() < 9.2e15).then_some(ms as i64)
}

fn unit_ms(unit: &str) -> Option<f64> {
    match unit {
        "ns" => Some(1e-6),
        "us" | "µs" => Some(1e-3),
        "ms" => Some(1.0),
        "s" => Some(1e3),
        "m" => Some(6e4),
        "h" => Some(3.6e6),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        for (text, ms) in [
            ("5m", 300_000),
            ("1h30m", 5_400_000),
            ("1.5h", 5_400_000),
            ("0", 0),
            ("0s", 0),
            ("-1s", -1_000),
            ("250ms", 250),
        ] {
            assert_eq!(go_duration_ms(text), Some(ms), "{text}");
        }
        for bad in [
            "",
            "5",
            "m",
            "5 m",
            "1d",
            "--1s",
            "1e3s",
            "9999999999999999999h",
            ".",
        ] {
            assert_eq!(go_duration_ms(bad), None, "{bad}");
        }
    }

    #[test]
    fn sizes_are_short() {
        for (n, text) in [
            (0, ""),
            (134_515_008, "134.5M"),
            (7_600_000_000, "7.6B"),
            (70_000_000_000, "70B"),
            (1_500, "1.5K"),
            (u64::MAX, ""),
        ] {
            assert_eq!(parameter_size(n), text);
        }
    }

    #[test]
    fn a_mistyped_name_is_understood() {
        let listed = || ["smollm2:135m", "qwen3:8b", "hf.co/a/b:Q4"].into_iter();
        assert_eq!(similar("smolm2", listed()), ["smollm2:135m"]);
        assert_eq!(similar("qwen3:4b", listed()), ["qwen3:8b"]);
        assert!(similar("llama", listed()).is_empty());
        assert!(same_model("a:latest", "A"));
        assert!(!same_model("a:8b", "a"));
    }

    #[test]
    fn times_carry_a_fraction() {
        assert_eq!(
            rfc3339_ms(1_700_000_000_123),
            "2023-11-14T22:13:20.123000000Z"
        );
        assert_eq!(rfc3339_ms(u64::MAX), "1970-01-01T00:00:00.000000000Z");
    }
}
