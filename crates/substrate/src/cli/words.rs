//! Numbers as people read them: sizes, ages, speeds, ids.

use std::time::{SystemTime, UNIX_EPOCH};

use substrate_api::v1;

/// Bytes in powers of ten, as Ollama writes them: `4.7 GB`, `98 MB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [(u64, &str); 4] = [
        (1_000_000_000_000, "TB"),
        (1_000_000_000, "GB"),
        (1_000_000, "MB"),
        (1_000, "KB"),
    ];
    let Some((unit, name)) = UNITS.into_iter().find(|(unit, _)| bytes >= *unit) else {
        return format!("{bytes} B");
    };
    let tenths = bytes / (unit / 10);
    match tenths {
        100.. => format!("{} {name}", tenths / 10),
        _ if tenths.is_multiple_of(10) => format!("{} {name}", tenths / 10),
        _ => format!("{}.{} {name}", tenths / 10, tenths % 10),
    }
}

/// A span of time in its largest unit: `4 minutes`.
pub fn span(ms: u64) -> String {
    const UNITS: [(u64, &str); 6] = [
        (31_536_000, "year"),
        (2_592_000, "month"),
        (604_800, "week"),
        (86_400, "day"),
        (3_600, "hour"),
        (60, "minute"),
    ];
    let seconds = ms / 1000;
    let (count, unit) = match UNITS.into_iter().find(|(unit, _)| seconds >= *unit) {
        Some((length, unit)) => (seconds / length, unit),
        None => (seconds, "second"),
    };
    match (count, unit) {
        (0, _) => "less than a second".to_owned(),
        (1, unit) => format!("1 {unit}"),
        (count, unit) => format!("{count} {unit}s"),
    }
}

/// A moment in the past or the future, seen from `now`.
pub fn moment(at_ms: u64, now: u64) -> String {
    if at_ms > now {
        format!("{} from now", span(at_ms - now))
    } else {
        format!("{} ago", span(now - at_ms))
    }
}

/// A few milliseconds, or more: `85 ms`, `3.2 s`, `4 minutes`.
pub fn wait(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{}.{} s", ms / 1000, ms % 1000 / 100),
        _ => span(ms),
    }
}

/// Unix milliseconds.
pub fn now_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Millitokens per second as `23.1 tok/s`.
pub fn rate(millitokens: u64) -> String {
    format!("{}.{} tok/s", millitokens / 1000, millitokens % 1000 / 100)
}

/// Speed of `tokens` in `ms`, in millitokens per second; `None` if too little was measured.
pub fn speed(tokens: u32, ms: u64) -> Option<u64> {
    (u64::from(tokens) * 1_000_000)
        .checked_div(ms)
        .filter(|rate| *rate > 0)
}

/// A count of things: `1 token`, `2 tokens`.
pub fn count(count: u32, thing: &str) -> String {
    if count == 1 {
        format!("1 {thing}")
    } else {
        format!("{count} {thing}s")
    }
}

/// Parameters as `134.5M`.
pub fn parameters(count: u64) -> String {
    let tenths =
        |unit: u64, name: &str| format!("{}.{}{name}", count / unit, count % unit / (unit / 10));
    match count {
        0 => "unknown".to_owned(),
        1_000_000_000.. => tenths(1_000_000_000, "B"),
        1_000_000.. => tenths(1_000_000, "M"),
        _ => count.to_string(),
    }
}

/// An id or digest in hex.
pub fn hex(bytes: &[u8]) -> String {
    hex::encode(bytes)
}

/// A digest as the lists show it: twelve digits, as Ollama's.
pub fn short_digest(bytes: &[u8]) -> String {
    hex::encode(&bytes[..bytes.len().min(6)])
}

/// A node as the lists show it: eight digits.
pub fn short_node(bytes: &[u8]) -> String {
    hex::encode(&bytes[..bytes.len().min(4)])
}

/// A scope's name.
pub fn scope(code: i32) -> &'static str {
    match v1::Scope::try_from(code) {
        Ok(v1::Scope::Mine) => "mine",
        Ok(v1::Scope::Circle) => "circle",
        Ok(v1::Scope::Commons) => "commons",
        _ => "unknown",
    }
}

/// A wall's name.
pub fn wall(code: i32) -> &'static str {
    match v1::Wall::try_from(code) {
        Ok(v1::Wall::Unspecified) => "none",
        Ok(v1::Wall::Basic) => "basic",
        Ok(v1::Wall::ProcessGpu) => "process+gpu",
        Ok(v1::Wall::Process) => "process",
        Ok(v1::Wall::Microvm) => "microvm",
        Ok(v1::Wall::MicrovmEmulated) => "microvm-emulated",
        Ok(v1::Wall::Tee) => "tee",
        _ => "unknown",
    }
}

/// A route's name.
pub fn route(code: i32) -> &'static str {
    match v1::Route::try_from(code) {
        Ok(v1::Route::Local) => "local",
        Ok(v1::Route::Direct) => "direct",
        Ok(v1::Route::Relayed) => "relayed",
        _ => "unknown",
    }
}

/// The reason why an answer ended.
pub fn finish(code: i32) -> &'static str {
    match v1::FinishReason::try_from(code) {
        Ok(v1::FinishReason::Stop) => "stop",
        Ok(v1::FinishReason::Length) => "length",
        Ok(v1::FinishReason::Cancelled) => "cancelled",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_ollama_writes_them() {
        let cases = [
            (0, "0 B"),
            (999, "999 B"),
            (1_000, "1 KB"),
            (1_500, "1.5 KB"),
            (98_765_432, "98 MB"),
            (4_700_000_000, "4.7 GB"),
        ];
        for (bytes, words) in cases {
            assert_eq!(size(bytes), words);
        }
    }

    #[test]
    fn moments_lie_before_or_after_now() {
        assert_eq!(moment(0, 14 * 86_400_000), "2 weeks ago");
        assert_eq!(moment(240_500, 500), "4 minutes from now");
        assert_eq!(moment(5, 5), "less than a second ago");
    }

    #[test]
    fn speeds_keep_one_digit() {
        assert_eq!(speed(50, 2_000).map(rate).as_deref(), Some("25.0 tok/s"));
        assert_eq!(speed(0, 2_000), None);
        assert_eq!(speed(5, 0), None);
        assert_eq!(parameters(134_515_008), "134.5M");
    }
}
