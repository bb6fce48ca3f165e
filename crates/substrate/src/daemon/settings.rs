//! The owner's settings as the loop uses them: what is lent at this moment, and to whom.
//!
//! Invariant: lending is `off` until the owner says otherwise, and nothing a peer sends changes these.
//! The owner's hours are the machine's local time, summer time included.

use jiff::{Timestamp, tz::TimeZone};
use substrate_node::{Lending, LendingTerms};
use substrate_record::{JobKind, NodeId, RecordId, Scope};

use super::context::unix_ms;
use crate::config::{Config, JobType, When};

/// Load average per core, in hundredths, under which the machine counts as idle: half a core's worth of
/// others' work on each core makes both slower (docs/decisions, and the engine's measured collapse under load).
const IDLE_LOAD_PERCENT: u32 = 50;

/// Settings in force.
pub struct Settings {
    config: Config,
    circle: Vec<NodeId>,
    refused_entries: Vec<RecordId>,
    cores: u32,
    /// Slots of this machine.
    slots: u32,
    last: Lending,
}

impl Settings {
    /// Takes over what was read from disk.
    pub fn new(config: Config, circle: Vec<NodeId>, cores: u32, slots: u32) -> Self {
        let mut settings = Self {
            config,
            circle,
            refused_entries: Vec::new(),
            cores,
            slots,
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
    pub fn replace(&mut self, config: Config, circle: Vec<NodeId>) {
        self.config = config;
        self.circle = circle;
    }

    /// Entries the owner lends, out of those held: a list in the settings leaves the others out.
    pub fn set_refused_entries(&mut self, refused: Vec<RecordId>) {
        self.refused_entries = refused;
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
        let willing = match lending.when {
            When::Off => false,
            When::Idle => is_idle(self.cores),
            When::Always => true,
        };
        let in_hours = lending
            .hours
            .as_ref()
            .is_none_or(|hours| hours.contains(minute_of_day(&TimeZone::system(), unix_ms())));
        if !willing || !in_hours {
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

/// Whether the machine has nothing else to do, by the load average of the last minute.
fn is_idle(cores: u32) -> bool {
    // A machine that does not tell its load is not known to be idle.
    let Ok(load) = sysinfo::System::load_average() else {
        return false;
    };
    load.one * 100.0 < f64::from(IDLE_LOAD_PERCENT) * f64::from(cores)
}

/// Minutes since midnight where the machine says it is. A machine that does not say is in UTC.
fn minute_of_day(zone: &TimeZone, unix_ms: u64) -> u16 {
    let moment = i64::try_from(unix_ms)
        .ok()
        .and_then(|ms| Timestamp::from_millisecond(ms).ok())
        .unwrap_or_default();
    let local = zone.to_datetime(moment);
    u16::from(local.hour().unsigned_abs()) * 60 + u16::from(local.minute().unsigned_abs())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use jiff::tz::offset;

    use super::*;

    /// What is lent by these settings on a machine of one core.
    fn lent(text: &str) -> Lending {
        let config = Config::parse(text, Path::new("config.toml")).unwrap();
        Settings::new(config, Vec::new(), 1, 8).lending()
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
