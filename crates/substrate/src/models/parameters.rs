//! Parameters of an answer under Ollama's names: what a model may have a default for, and a request may say itself.
//!
//! Invariants: a value that is kept is within its range; fractions are integers times 10^6, as in records.
//! Absent by design: the engine's settings (`num_gpu`, `num_thread`). They are the owner's of the machine that answers.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};
use substrate_record::Sampler;
use substrate_sandbox::wire::input::{MAX_STOP, MAX_STOPS};

/// Fixed point of fractions in records.
pub(crate) const MICRO: f64 = 1e6;

/// Every whole number up to here is a float of its own; past it a float may mean its neighbour.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// More new tokens than any context holds; larger wishes mean "as many as fit".
pub(crate) const MAX_NEW_TOKENS: i64 = 1 << 20;

/// Longest piece of a wrong name or value that an error repeats.
const ECHO_CHARS: usize = 60;

/// One parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Setting {
    /// 0 takes the likeliest token every time.
    Temperature,
    /// Only the so many likeliest tokens; 0 is all.
    TopK,
    /// Only tokens that together have this probability.
    TopP,
    /// Only tokens this likely beside the likeliest.
    MinP,
    /// Only tokens about as surprising as usual.
    TypicalP,
    /// How far back a repetition counts; −1 is all.
    RepeatLastN,
    /// Over 1: repeat less.
    RepeatPenalty,
    /// Over 0: less of what was said at all.
    PresencePenalty,
    /// Over 0: less of what was said often.
    FrequencyPenalty,
    /// The same seed gives the same answer; −1 draws one.
    Seed,
    /// At most so many tokens; below 1: up to the end of the context.
    NumPredict,
    /// Tokens of context that the model is loaded with here; 0 leaves it to the machine.
    NumCtx,
    /// Texts that end the answer.
    Stop,
}

/// What a request says itself; a model's defaults hold for the rest.
pub type Said = BTreeSet<Setting>;

/// Of whose business a parameter is that is known and changes nothing here.
const IGNORED: [(&str, &[&str]); 2] = [
    (
        "is a setting of the machine that answers, and its owner's",
        &[
            "num_gpu",
            "main_gpu",
            "num_thread",
            "num_batch",
            "num_keep",
            "use_mmap",
            "use_mlock",
            "low_vram",
            "numa",
            "f16_kv",
            "draft_num_predict",
        ],
    ),
    (
        "is obsolete",
        &[
            "mirostat",
            "mirostat_tau",
            "mirostat_eta",
            "tfs_z",
            "penalize_newline",
            "logits_all",
            "vocab_only",
        ],
    ),
];

impl Setting {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Temperature,
        Self::TopK,
        Self::TopP,
        Self::MinP,
        Self::TypicalP,
        Self::RepeatLastN,
        Self::RepeatPenalty,
        Self::PresencePenalty,
        Self::FrequencyPenalty,
        Self::Seed,
        Self::NumPredict,
        Self::NumCtx,
        Self::Stop,
    ];

    /// Ollama's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Temperature => "temperature",
            Self::TopK => "top_k",
            Self::TopP => "top_p",
            Self::MinP => "min_p",
            Self::TypicalP => "typical_p",
            Self::RepeatLastN => "repeat_last_n",
            Self::RepeatPenalty => "repeat_penalty",
            Self::PresencePenalty => "presence_penalty",
            Self::FrequencyPenalty => "frequency_penalty",
            Self::Seed => "seed",
            Self::NumPredict => "num_predict",
            Self::NumCtx => "num_ctx",
            Self::Stop => "stop",
        }
    }

    /// The one with this name, in any case.
    pub fn from_name(name: &str) -> Option<Self> {
        let is_named = |setting: &Self| setting.name().eq_ignore_ascii_case(name);
        Self::ALL.into_iter().find(is_named)
    }

    /// What is said of a name that is known and changes nothing.
    pub fn why_ignored(name: &str) -> Option<&'static str> {
        let named = |names: &&[&str]| names.iter().any(|known| known.eq_ignore_ascii_case(name));
        let found = IGNORED.iter().find(|(_, names)| named(names));
        found.map(|(why, _)| *why)
    }

    /// The smallest and the largest value; the sampler's own bounds.
    pub fn range(self) -> RangeInclusive<f64> {
        let (low, high) = match self {
            // Hotter than this is noise from every model.
            Self::Temperature => (0.0, 10.0),
            Self::TopK | Self::RepeatLastN => (-1.0, 1e6),
            Self::TopP | Self::MinP | Self::TypicalP => (0.0, 1.0),
            // Zero would divide.
            Self::RepeatPenalty => (0.01, 10.0),
            Self::PresencePenalty | Self::FrequencyPenalty => (-2.0, 2.0),
            Self::Seed | Self::Stop => (-EXACT, EXACT),
            Self::NumPredict => (-2.0, f64::from(i32::MAX)),
            Self::NumCtx => (0.0, f64::from(i32::MAX)),
        };
        low..=high
    }

    fn is_whole(self) -> bool {
        matches!(
            self,
            Self::TopK | Self::RepeatLastN | Self::Seed | Self::NumPredict | Self::NumCtx
        )
    }

    /// A value's text as the integer that is kept.
    fn read(self, text: &str) -> Result<i64, ParameterError> {
        let name = self.name();
        let value = || clipped(text);
        if self == Self::Seed
            && let Ok(seed) = text.parse()
        {
            return Ok(seed);
        }
        let number: f64 = text.parse().map_err(|_| ParameterError::NotANumber {
            name,
            value: value(),
        })?;
        let range = self.range();
        if !range.contains(&number) {
            let (low, high) = range.into_inner();
            let value = value();
            return Err(ParameterError::Range {
                name,
                low,
                high,
                value,
            });
        }
        // The range bounds both casts.
        match self.is_whole() {
            true if number.fract() != 0.0 => Err(ParameterError::NotWhole {
                name,
                value: value(),
            }),
            true => Ok(number as i64),
            false => Ok((number * MICRO).round() as i64),
        }
    }

    /// The integer that is kept, as people write it.
    fn write(self, kept: i64) -> String {
        if self.is_whole() {
            return kept.to_string();
        }
        let (sign, size) = (if kept < 0 { "-" } else { "" }, kept.unsigned_abs());
        let digits = format!("{:06}", size % 1_000_000);
        match digits.trim_end_matches('0') {
            "" => format!("{sign}{}", size / 1_000_000),
            digits => format!("{sign}{}.{digits}", size / 1_000_000),
        }
    }
}

/// Why a parameter is refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ParameterError {
    /// Nobody knows it.
    #[error("there is no parameter '{name}'")]
    Unknown {
        /// As written, cut short.
        name: String,
    },
    /// Not a number.
    #[error("{name} must be a number, not '{value}'")]
    NotANumber {
        /// The parameter.
        name: &'static str,
        /// As written, cut short.
        value: String,
    },
    /// A fraction where there are none.
    #[error("{name} must be a whole number, not {value}")]
    NotWhole {
        /// The parameter.
        name: &'static str,
        /// As written, cut short.
        value: String,
    },
    /// Outside its range.
    #[error("{name} must be between {low} and {high}, not {value}")]
    Range {
        /// The parameter.
        name: &'static str,
        /// The smallest.
        low: f64,
        /// The largest.
        high: f64,
        /// As written, cut short.
        value: String,
    },
    /// A stop string that cannot be one.
    #[error("a stop string must have 1 to {MAX_STOP} bytes")]
    Stop,
    /// Too many of them.
    #[error("there may be {MAX_STOPS} stop strings at most")]
    Stops,
    /// Of a type no parameter has.
    #[error("{name} must be a number, a text or a list of texts")]
    Type {
        /// The parameter.
        name: String,
    },
}

/// Parameters that were set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parameters {
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    numbers: BTreeMap<Setting, i64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    stop: Vec<String>,
}

impl Parameters {
    /// Sets one by its name; `stop` adds. The answer is a warning: why the parameter changes nothing.
    ///
    /// # Errors
    /// A name nobody knows, or a value that cannot be.
    pub fn set(&mut self, name: &str, value: &str) -> Result<Option<String>, ParameterError> {
        let Some(setting) = Setting::from_name(name) else {
            let name = clipped(name);
            let why = Setting::why_ignored(&name);
            return match why {
                Some(why) => Ok(Some(format!("{name} {why}: ignored"))),
                None => Err(ParameterError::Unknown { name }),
            };
        };
        if setting == Setting::Stop {
            self.add_stop(value)?;
        } else {
            self.numbers.insert(setting, setting.read(value.trim())?);
        }
        Ok(None)
    }

    /// Sets one as it stands in JSON: a number, a text, or a list of texts.
    ///
    /// # Errors
    /// As [`Self::set`].
    pub fn set_json(
        &mut self,
        name: &str,
        value: &serde_json::Value,
    ) -> Result<Option<String>, ParameterError> {
        use serde_json::Value;
        match value {
            // Clients write what they do not set.
            Value::Null => Ok(None),
            Value::String(text) => self.set(name, text),
            Value::Number(number) => self.set(name, &number.to_string()),
            Value::Array(texts) => {
                let mut warning = None;
                for text in texts {
                    if text.is_array() {
                        return Err(ParameterError::Type {
                            name: clipped(name),
                        });
                    }
                    warning = self.set_json(name, text)?;
                }
                Ok(warning)
            }
            // Options of the engine are often truth values.
            Value::Bool(truth) if Setting::from_name(name).is_none() => {
                self.set(name, &truth.to_string())
            }
            _ => Err(ParameterError::Type {
                name: clipped(name),
            }),
        }
    }

    fn add_stop(&mut self, text: &str) -> Result<(), ParameterError> {
        if text.is_empty() || text.len() > MAX_STOP {
            return Err(ParameterError::Stop);
        }
        if self.stop.len() == MAX_STOPS {
            return Err(ParameterError::Stops);
        }
        self.stop.push(text.to_owned());
        Ok(())
    }

    /// What these do not say is taken from `base`. Stop strings are one value.
    pub fn lay_over(&mut self, base: &Self) {
        for (setting, value) in &base.numbers {
            self.numbers.entry(*setting).or_insert(*value);
        }
        if self.stop.is_empty() {
            self.stop.clone_from(&base.stop);
        }
    }

    /// Whether nothing is set.
    pub fn is_empty(&self) -> bool {
        self.numbers.is_empty() && self.stop.is_empty()
    }

    /// Puts what a request did not say itself into its sampler.
    pub fn fill_sampler(&self, sampler: &mut Sampler, said: &Said) {
        for (setting, value) in self.unsaid(said) {
            // Ranges bound the casts; −1 of `top_k` is all.
            let size = value.max(0).unsigned_abs();
            match setting {
                Setting::Temperature => sampler.temperature = size,
                Setting::TopK => sampler.top_k = u32::try_from(size).unwrap_or(u32::MAX),
                Setting::TopP => sampler.top_p = size,
                Setting::MinP => sampler.min_p = size,
                Setting::TypicalP => sampler.typical_p = size,
                Setting::RepeatLastN => {
                    sampler.repeat_last_n = i32::try_from(value).unwrap_or(i32::MAX);
                }
                Setting::RepeatPenalty => sampler.repeat = size,
                Setting::PresencePenalty => sampler.presence = value,
                Setting::FrequencyPenalty => sampler.frequency = value,
                Setting::Seed | Setting::NumPredict | Setting::NumCtx | Setting::Stop => {}
            }
        }
    }

    fn unsaid(&self, said: &Said) -> impl Iterator<Item = (Setting, i64)> {
        let numbers = self
            .numbers
            .iter()
            .map(|(setting, value)| (*setting, *value));
        numbers.filter(|(setting, _)| !said.contains(setting))
    }

    /// The seed, if there is one to be used.
    pub fn seed(&self) -> Option<i64> {
        let seed = self.numbers.get(&Setting::Seed).copied();
        seed.filter(|seed| *seed != -1)
    }

    /// Tokens of an answer at most, if there is a limit.
    pub fn max_tokens(&self) -> Option<u32> {
        let limit = self.numbers.get(&Setting::NumPredict).copied();
        let limit = limit.filter(|limit| *limit > 0)?;
        u32::try_from(limit.min(MAX_NEW_TOKENS)).ok()
    }

    /// Tokens of context, if so many are wanted.
    pub fn context(&self) -> Option<u32> {
        let tokens = self.numbers.get(&Setting::NumCtx).copied();
        u32::try_from(tokens?).ok().filter(|tokens| *tokens > 0)
    }

    /// Texts that end the answer.
    pub fn stop(&self) -> &[String] {
        &self.stop
    }

    /// Name and value of each, as people write them.
    pub fn lines(&self) -> impl Iterator<Item = (&'static str, String)> {
        let numbers = self.numbers.iter();
        let numbers = numbers.map(|(setting, value)| (setting.name(), setting.write(*value)));
        let stops = self.stop.iter();
        numbers.chain(stops.map(|text| (Setting::Stop.name(), text.clone())))
    }

    /// Lines of a name and a value, as Ollama's clients know them: texts are quoted.
    pub fn listing(&self) -> String {
        let stop = Setting::Stop.name();
        let line = |(name, value): (&str, String)| match name == stop {
            true => format!("{name:30} {value:?}"),
            false => format!("{name:30} {value}"),
        };
        self.lines().map(line).collect::<Vec<_>>().join("\n")
    }
}

/// Words of somebody else, short and without control characters.
pub(super) fn clipped(words: &str) -> String {
    let shown = words.chars().filter(|c| !c.is_control());
    shown.take(ECHO_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::http::embed::NOTHING_DRAWN;

    fn set(pairs: &[(&str, &str)]) -> Parameters {
        let mut parameters = Parameters::default();
        for (name, value) in pairs {
            parameters.set(name, value).unwrap();
        }
        parameters
    }

    fn refused(name: &str, value: &str) -> String {
        let error = Parameters::default().set(name, value).unwrap_err();
        error.to_string()
    }

    #[test]
    fn values_are_kept_as_records_keep_them_and_told_as_people_write_them() {
        let parameters = set(&[
            ("Temperature", "0.70"),
            ("top_k", "40.0"),
            ("presence_penalty", "-0.5"),
            ("seed", "9007199254740993"),
            ("stop", "<|im_end|>"),
            ("STOP", "a \"quote\""),
        ]);
        let lines: Vec<String> = parameters
            .lines()
            .map(|(name, value)| format!("{name} {value}"))
            .collect();
        assert_eq!(
            lines,
            [
                "temperature 0.7",
                "top_k 40",
                "presence_penalty -0.5",
                "seed 9007199254740993",
                "stop <|im_end|>",
                "stop a \"quote\"",
            ]
        );
        assert!(
            parameters
                .listing()
                .ends_with("stop                           \"a \\\"quote\\\"\"")
        );
    }

    #[test]
    fn a_wrong_parameter_says_what_is_wrong() {
        for (name, value, why) in [
            ("temprature", "1", "there is no parameter 'temprature'"),
            (
                "temperature",
                "hot",
                "temperature must be a number, not 'hot'",
            ),
            (
                "temperature",
                "nan",
                "temperature must be between 0 and 10, not nan",
            ),
            ("top_p", "1.5", "top_p must be between 0 and 1, not 1.5"),
            ("top_k", "1.5", "top_k must be a whole number, not 1.5"),
            ("stop", "", "a stop string must have 1 to 1024 bytes"),
        ] {
            assert_eq!(refused(name, value), why);
        }
        let mut full = Parameters::default();
        for _ in 0..MAX_STOPS {
            full.set("stop", "x").unwrap();
        }
        assert_eq!(full.set("stop", "x"), Err(ParameterError::Stops));
    }

    #[test]
    fn what_is_not_ours_is_ignored_and_says_why() {
        let mut parameters = Parameters::default();
        let warned = |warning: Option<String>| warning.unwrap();
        assert_eq!(
            warned(parameters.set("mirostat_tau", "5").unwrap()),
            "mirostat_tau is obsolete: ignored"
        );
        let truth = serde_json::json!(true);
        assert!(warned(parameters.set_json("use_mmap", &truth).unwrap()).contains("owner's"));
        assert!(parameters.is_empty());
    }

    #[test]
    fn what_a_request_says_wins() {
        let parameters = set(&[("temperature", "0"), ("top_k", "7"), ("num_predict", "-1")]);
        let mut sampler = Sampler {
            temperature: 800_000,
            ..NOTHING_DRAWN
        };
        parameters.fill_sampler(&mut sampler, &Said::from([Setting::Temperature]));
        assert_eq!((sampler.temperature, sampler.top_k), (800_000, 7));
        parameters.fill_sampler(&mut sampler, &Said::new());
        assert_eq!(sampler.temperature, 0);
        assert_eq!((parameters.max_tokens(), parameters.seed()), (None, None));
    }

    #[test]
    fn what_is_laid_over_wins() {
        let mut upper = set(&[("top_k", "1"), ("stop", "a")]);
        upper.lay_over(&set(&[("top_k", "2"), ("top_p", "0.5"), ("stop", "b")]));
        assert_eq!(
            upper,
            set(&[("top_k", "1"), ("top_p", "0.5"), ("stop", "a")])
        );
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(at in 0..Setting::ALL.len(), text in "-?[0-9]{1,7}(\\.[0-9]{0,7})?|.{0,20}") {
            let name = Setting::ALL[at].name();
            let mut parameters = Parameters::default();
            if parameters.set(name, &text) == Ok(None) {
                let mut again = Parameters::default();
                for (name, value) in parameters.lines() {
                    prop_assert_eq!(again.set(name, &value), Ok(None));
                }
                prop_assert_eq!(&again, &parameters);
                let json = serde_json::to_string(&parameters).unwrap();
                prop_assert_eq!(serde_json::from_str::<Parameters>(&json).unwrap(), parameters);
            }
        }
    }
}
