//! `strftime` for the dates that chat templates print, in UTC and English.
//!
//! Invariant: total; an unknown directive is printed as it stands.
//! Absent by design: time zones and locales: two nodes would render two prompts.

const DAYS: [&str; 7] = [
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

struct Date {
    year: u64,
    month: u64,
    day: u64,
    weekday: usize,
    day_of_year: u64,
    second_of_day: u64,
}

/// Formats `seconds` since 1970 in UTC.
pub fn strftime(format: &str, seconds: u64) -> String {
    let date = date_of(seconds);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('-') => {
                let padded = chars
                    .next()
                    .map(|c| directive(c, &date))
                    .unwrap_or_default();
                let bare = padded.trim_start_matches(['0', ' ']);
                out.push_str(if bare.is_empty() { "0" } else { bare });
            }
            Some(c) => out.push_str(&directive(c, &date)),
            None => out.push('%'),
        }
    }
    out
}

fn directive(c: char, date: &Date) -> String {
    let (hour, minute) = (date.second_of_day / 3600, date.second_of_day / 60 % 60);
    let month = MONTHS[date.month as usize - 1];
    match c {
        'Y' => format!("{}", date.year),
        'y' => format!("{:02}", date.year % 100),
        'm' => format!("{:02}", date.month),
        'd' => format!("{:02}", date.day),
        'e' => format!("{:2}", date.day),
        'j' => format!("{:03}", date.day_of_year),
        'B' => month.into(),
        'b' | 'h' => month[..3].into(),
        'A' => DAYS[date.weekday].into(),
        'a' => DAYS[date.weekday][..3].into(),
        'H' => format!("{hour:02}"),
        'I' => format!("{:02}", (hour + 11) % 12 + 1),
        'p' => if hour < 12 { "AM" } else { "PM" }.into(),
        'M' => format!("{minute:02}"),
        'S' => format!("{:02}", date.second_of_day % 60),
        'F' => format!("{}-{:02}-{:02}", date.year, date.month, date.day),
        'T' => format!("{hour:02}:{minute:02}:{:02}", date.second_of_day % 60),
        'D' => format!("{:02}/{:02}/{:02}", date.month, date.day, date.year % 100),
        'Z' => "UTC".into(),
        'z' => "+0000".into(),
        'n' => "\n".into(),
        't' => "\t".into(),
        '%' => "%".into(),
        other => format!("%{other}"),
    }
}

/// Days to civil date, after Howard Hinnant's `civil_from_days`.
fn date_of(seconds: u64) -> Date {
    let days = seconds / 86_400;
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let from_march = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * from_march + 2) / 153;
    let day = from_march - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    // March 1 is day 60 or 61 of its year; January 1 is day 306 of the year that began in March.
    let day_of_year = if month > 2 {
        from_march + 60 + u64::from(leap)
    } else {
        from_march - 305
    };
    Date {
        year,
        month,
        day,
        weekday: ((days + 4) % 7) as usize,
        day_of_year,
        second_of_day: seconds % 86_400,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_dates_read_as_pythons() {
        let cases = [
            (
                0,
                "%A %d %B %Y %H:%M:%S",
                "Thursday 01 January 1970 00:00:00",
            ),
            (951_782_400, "%Y-%m-%d %j %a", "2000-02-29 060 Tue"),
            (
                1_735_689_599,
                "%d %b %Y, %I:%M %p, day %j",
                "31 Dec 2024, 11:59 PM, day 366",
            ),
            (
                1_700_000_000,
                "%-d %B, 100%% %q %F %T",
                "14 November, 100% %q 2023-11-14 22:13:20",
            ),
        ];
        for (seconds, format, expected) in cases {
            assert_eq!(strftime(format, seconds), expected);
        }
    }
}
