//! The owner's settings as the loop uses them: what is lent at this moment, and to whom.
//!
//! Invariant: lending is `off` until the owner says otherwise, and nothing a peer sends changes these.
//! The owner's hours are the machine's local time, summer time included.

use std::time::Duration;

use jiff::{Timestamp, tz::TimeZone};
use substrate_node::{Lending, LendingTerms};
use substrate_record::{JobKind, NodeId, RecordId, Scope};

use super::context::unix_ms;
use super::owner::{Owner, Seen};
use crate::config::{Config, JobType, When};
use crate::pause::Pause;

/// Settings in force.
pub struct Settings {
    config: Config,
    circle: Vec<NodeId>,
    refused_entries: Vec<RecordId>,
    /// Slots of this machine.
    slots: u32,
    owner: Owner,
    pause: Option<Pause>,
    last: Lending,
}

impl Settings {
    /// Takes over what was read from disk.
    pub fn new(config: Config, circle: Vec<NodeId>, slots: u32, owner: Owner) -> Self {
        let mut settings = Self {
            config,
            circle,
            refused_entries: Vec::new(),
            slots,
            owner,
            pause: None,
            last: Lending::Off,
        };
        settings.last = settings.now();
        settings
    }

    /// The file as read.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Keys listed in any circle.
    pub fn circle(&self) -> &[NodeId] {
        &self.circle
    }

    /// New settings and circles, read again.
    pub fn replace(&mut self, config: Config, circle: Vec<NodeId>, now: substrate_node::Timestamp) {
        if config.lending.when != self.config.lending.when {
            // What matters now was not looked at before.
            self.owner.begin_again(now);
        }
        self.config = config;
        self.circle = circle;
    }

    /// Entries the owner lends, out of those held: a list in the settings leaves the others out.
    pub fn set_refused_entries(&mut self, refused: Vec<RecordId>) {
        self.refused_entries = refused;
    }

    /// What the owner asked for by hand.
    pub fn set_pause(&mut self, pause: Option<Pause>) {
        self.pause = pause;
    }

    /// What a look at the machine brought.
    pub fn see(&mut self, now: substrate_node::Timestamp, seen: Seen) {
        let idle_after = self.idle_after();
        self.owner.see(now, seen, idle_after);
    }

    /// The owner keeps the machine to itself for now, by hand or by using it.
    pub fn is_withheld(&self) -> bool {
        let when = self.config.lending.when;
        when != When::Off && (self.is_paused() || self.owner.is_here(when))
    }

    /// Why nothing is lent at this moment, by one who is willing otherwise.
    pub fn withheld(&self, now: substrate_node::Timestamp) -> Option<String> {
        let when = self.config.lending.when;
        if when == When::Off {
            return None;
        }
        match self.pause.filter(|_| self.is_paused()) {
            Some(Pause::UntilResumed) => Some("paused until `substrate resume`".to_owned()),
            Some(Pause::Until(end)) => Some(format!("paused until {}", clock(end))),
            None => self
                .owner
                .why(when, now, self.idle_after())
                .or_else(|| (!self.is_in_hours()).then(|| "outside its hours".to_owned())),
        }
    }

    fn is_paused(&self) -> bool {
        self.pause.is_some_and(|pause| pause.holds(unix_ms()))
    }

    fn idle_after(&self) -> Duration {
        self.config.lending.idle_after.0
    }

    fn is_in_hours(&self) -> bool {
        let hours = self.config.lending.hours.as_ref();
        hours.is_none_or(|hours| hours.contains(minute_of_day(&TimeZone::system(), unix_ms())))
    }

    /// What is lent now.
    pub fn lending(&mut self) -> Lending {
        self.last = self.now();
        self.last.clone()
    }

    /// What is lent now, if that is something else than before.
    pub fn lending_changed(&mut self) -> Option<Lending> {
        let now = self.now();
        (now != self.last).then(|| {
            self.last = now.clone();
            now
        })
    }

    /// `off`, `idle` or `always`, for people.
    pub fn lending_word(&self) -> &'static str {
        match self.config.lending.when {
            When::Off => "off",
            When::Idle => "idle",
            When::Always => "always",
        }
    }

    fn now(&self) -> Lending {
        let lending = &self.config.lending;
        if lending.when == When::Off || self.is_withheld() || !self.is_in_hours() {
            return Lending::Off;
        }
        let lends = |kind| lending.job_types.is_empty() || lending.job_types.contains(&kind);
        let refused_kinds = [
            (JobType::Generate, JobKind::Generate),
            (JobType::Embed, JobKind::Embed),
        ];
        Lending::On(LendingTerms {
            widest: Scope::Commons,
            slots: lent(self.slots),
            only_nodes: lending.requesters.allow.clone(),
            refused_nodes: lending.requesters.deny.clone(),
            refused_entries: self.refused_entries.clone(),
            refused_kinds: refused_kinds
                .into_iter()
                .filter(|(word, _)| !lends(*word))
                .map(|(_, kind)| kind)
                .collect(),
        })
    }
}

/// Slots lent: a quarter, and at least one, stays free for the owner, who would otherwise wait for a stranger's answer to
/// end. A machine with a single slot lends it.
fn lent(slots: u32) -> u32 {
    slots.saturating_sub((slots / 4).max(1)).max(1)
}

/// A moment as the owner's clock shows it.
fn clock(unix_ms: u64) -> String {
    let local = TimeZone::system().to_datetime(moment(unix_ms));
    local.strftime("%Y-%m-%d %H:%M").to_string()
}

fn moment(unix_ms: u64) -> Timestamp {
    let ms = i64::try_from(unix_ms).ok();
    ms.and_then(|ms| Timestamp::from_millisecond(ms).ok())
        .unwrap_or_default()
}

/// Minutes since midnight where the machine says it is. A machine that does not say is in UTC.
fn minute_of_day(zone: &TimeZone, unix_ms: u64) -> u16 {
    let local = zone.to_datetime(moment(unix_ms));
    u16::from(local.hour().unsigned_abs()) * 60 + u16::from(local.minute().unsigned_abs())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use jiff::tz::offset;

    use super::*;

    const START: substrate_node::Timestamp = substrate_node::Timestamp(0);

    fn settings(text: &str) -> Settings {
        let config = Config::parse(text, Path::new("config.toml")).unwrap();
        Settings::new(config, Vec::new(), 8, Owner::new(START))
    }

    /// What is lent by these settings on a machine nobody uses.
    fn lent(text: &str) -> Lending {
        settings(text).lending()
    }

    #[test]
    fn a_pause_withholds_what_is_lent_until_it_ends() {
        let mut settings = settings("[lending]\nwhen = 'always'\n");
        assert!(matches!(settings.lending(), Lending::On(_)));
        settings.set_pause(Some(Pause::UntilResumed));
        assert_eq!(settings.lending_changed(), Some(Lending::Off));
        let why = settings.withheld(START).unwrap();
        assert!(why.contains("`substrate resume`"), "{why}");
        settings.set_pause(Some(Pause::Until(unix_ms() + 60_000)));
        assert_eq!(settings.lending_changed(), None);
        assert!(
            settings
                .withheld(START)
                .unwrap()
                .starts_with("paused until 20")
        );
        settings.set_pause(Some(Pause::Until(unix_ms())));
        assert!(matches!(settings.lending_changed(), Some(Lending::On(_))));
        assert_eq!(settings.withheld(START), None);
    }

    #[test]
    fn one_who_lends_idle_from_now_on_is_watched_first() {
        let mut settings = settings("[lending]\nwhen = 'always'\nidle_after = '2s'\n");
        let at = |ms| substrate_node::Timestamp(ms);
        settings.see(at(9_000), Seen::default());
        let text = "[lending]\nwhen = 'idle'\nidle_after = '2s'\n";
        let idle = Config::parse(text, Path::new("config.toml")).unwrap();
        settings.replace(idle.clone(), Vec::new(), at(9_000));
        assert_eq!(settings.lending(), Lending::Off);
        settings.see(at(11_000), Seen::default());
        assert!(matches!(settings.lending(), Lending::On(_)));
        settings.replace(idle, Vec::new(), at(12_000));
        assert!(matches!(settings.lending(), Lending::On(_)));
    }

    #[test]
    fn an_owner_who_lends_nothing_withholds_nothing() {
        let mut settings = settings("");
        settings.set_pause(Some(Pause::UntilResumed));
        assert!(!settings.is_withheld() && settings.withheld(START).is_none());
    }

    #[test]
    fn a_machine_that_was_not_watched_is_not_known_to_be_idle() {
        let mut settings = settings("[lending]\nwhen = 'idle'\nidle_after = '2s'\n");
        assert_eq!(settings.lending(), Lending::Off);
        let at = |ms| substrate_node::Timestamp(ms);
        settings.see(at(1_999), Seen::default());
        assert_eq!(settings.lending(), Lending::Off);
        settings.see(at(2_000), Seen::default());
        assert!(matches!(settings.lending(), Lending::On(_)));
    }

    #[test]
    fn the_owner_keeps_a_quarter_of_the_slots() {
        let slots = [1, 2, 3, 8, 16].map(super::lent);
        assert_eq!(slots, [1, 1, 2, 6, 12]);
    }

    #[test]
    fn nothing_is_lent_until_the_owner_says_so() {
        assert_eq!(lent(""), Lending::Off);
        assert!(matches!(
            lent("[lending]\nwhen = 'always'\n"),
            Lending::On(_)
        ));
    }

    #[test]
    fn both_lists_of_requesters_reach_the_node() {
        let (friend, foe) = (NodeId::from_bytes([7; 32]), NodeId::from_bytes([8; 32]));
        let text = format!(
            "[lending]\nwhen = 'always'\n[lending.requesters]\nallow = ['{friend}']\ndeny = ['{foe}']\n"
        );
        let Lending::On(terms) = lent(&text) else {
            panic!("lending is on");
        };
        assert_eq!(terms.only_nodes, [friend]);
        assert_eq!(terms.refused_nodes, [foe]);
        assert!(terms.admits(&friend) && !terms.admits(&foe));
        assert!(!terms.admits(&NodeId::from_bytes([9; 32])));
    }

    #[test]
    fn hours_are_counted_where_the_machine_is() {
        // 1970-01-01 at 22:30 UTC.
        let late = (22 * 60 + 30) * 60_000;
        let minute = |hours| minute_of_day(&TimeZone::fixed(offset(hours)), late);
        assert_eq!(minute(0), 22 * 60 + 30);
        assert_eq!(minute(5), 3 * 60 + 30, "tomorrow already");
        assert_eq!(minute(-8), 14 * 60 + 30);
        let hours: crate::config::Hours = "22:00-07:00".parse().unwrap();
        assert!(hours.contains(minute(5)) && !hours.contains(minute(-8)));
    }

    #[test]
    fn summer_time_counts() {
        let zone = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        let at = |moment: &str| {
            let moment: Timestamp = moment.parse().unwrap();
            minute_of_day(&zone, u64::try_from(moment.as_millisecond()).unwrap())
        };
        assert_eq!(at("2026-01-15T12:00:00Z"), 13 * 60);
        assert_eq!(at("2026-07-15T12:00:00Z"), 14 * 60);
    }
}
