//! How tokens are drawn: the flags of `run` and the `/set parameter` of a conversation, one table for both.
//!
//! Invariant: a fraction becomes an integer times 10^6 here, once, from its decimal digits.

use clap::Args;
use substrate_api::v1;

use crate::grpc::convert::default_sampler;
use crate::models::parameters::Setting;

/// One million: what a fraction of 1 is on the wire.
const ONE: u64 = 1_000_000;

/// Sampling parameters that a person chose; the rest stay as they are usual.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Sampling")]
pub struct Sampling {
    /// 0 takes the likeliest token every time [default: 0.8]
    #[arg(long, value_parser = fraction)]
    temperature: Option<u64>,

    /// Only the so many likeliest tokens; 0 is all [default: 40]
    #[arg(long, value_name = "COUNT")]
    top_k: Option<u32>,

    /// Only tokens that together have this probability [default: 0.9]
    #[arg(long, value_parser = share)]
    top_p: Option<u64>,

    /// Only tokens this likely beside the likeliest [default: 0]
    #[arg(long, value_parser = share)]
    min_p: Option<u64>,

    /// The same seed and prompt give the same answer on the same machine
    #[arg(long, allow_negative_numbers = true)]
    seed: Option<i64>,

    /// At most so many tokens [default: up to the context's end]
    #[arg(long, value_name = "COUNT")]
    max_tokens: Option<u32>,

    /// End the answer at this text; may be repeated
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,

    #[arg(skip)]
    typical_p: Option<u64>,
    #[arg(skip)]
    repeat_penalty: Option<u64>,
    #[arg(skip)]
    repeat_last_n: Option<i32>,
    #[arg(skip)]
    presence_penalty: Option<i64>,
    #[arg(skip)]
    frequency_penalty: Option<i64>,
}

/// What `/set parameter` accepts, with Ollama's names.
pub const PARAMETERS: [(&str, &str); 12] = [
    ("temperature", "0 takes the likeliest token every time"),
    ("top_k", "only the so many likeliest tokens; 0 is all"),
    ("top_p", "only tokens that together have this probability"),
    ("min_p", "only tokens this likely beside the likeliest"),
    ("typical_p", "only tokens about as surprising as usual"),
    ("seed", "the same seed gives the same answer"),
    ("num_predict", "at most so many tokens"),
    ("stop", "end the answer at this text"),
    ("repeat_penalty", "over 1: repeat less"),
    ("repeat_last_n", "how far back a repetition counts"),
    ("presence_penalty", "over 0: less of what was said at all"),
    ("frequency_penalty", "over 0: less of what was said often"),
];

impl Sampling {
    /// Puts the choices into a request.
    pub fn apply(&self, request: &mut v1::RunRequest) {
        let usual = default_sampler();
        request.sampler = Some(v1::Sampler {
            temperature: self.temperature.unwrap_or(usual.temperature),
            top_k: self.top_k.unwrap_or(usual.top_k),
            top_p: self.top_p.unwrap_or(usual.top_p),
            min_p: self.min_p.unwrap_or(usual.min_p),
            typical_p: self.typical_p.unwrap_or(usual.typical_p),
            repeat_last_n: self.repeat_last_n.unwrap_or(usual.repeat_last_n),
            repeat: self.repeat_penalty.unwrap_or(usual.repeat),
            presence: self.presence_penalty.unwrap_or(usual.presence),
            frequency: self.frequency_penalty.unwrap_or(usual.frequency),
            ..usual
        });
        request.said = self.said();
        request.seed = self.seed;
        request.max_tokens = self.max_tokens;
        request.stop.clone_from(&self.stop);
    }

    /// Those that were chosen, so that no default of the model's takes their place.
    fn said(&self) -> Vec<String> {
        let said = [
            (Setting::Temperature, self.temperature.is_some()),
            (Setting::TopK, self.top_k.is_some()),
            (Setting::TopP, self.top_p.is_some()),
            (Setting::MinP, self.min_p.is_some()),
            (Setting::TypicalP, self.typical_p.is_some()),
            (Setting::RepeatLastN, self.repeat_last_n.is_some()),
            (Setting::RepeatPenalty, self.repeat_penalty.is_some()),
            (Setting::PresencePenalty, self.presence_penalty.is_some()),
            (Setting::FrequencyPenalty, self.frequency_penalty.is_some()),
            (Setting::Seed, self.seed.is_some()),
            (Setting::NumPredict, self.max_tokens.is_some()),
            (Setting::Stop, !self.stop.is_empty()),
        ];
        let said = said.into_iter().filter(|(_, said)| *said);
        said.map(|(setting, _)| setting.name().to_owned()).collect()
    }

    /// Sets one parameter by its name; an error says what was expected.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        match name {
            "temperature" => self.temperature = Some(fraction(value)?),
            "top_k" => self.top_k = Some(whole(value)?),
            "top_p" => self.top_p = Some(share(value)?),
            "min_p" => self.min_p = Some(share(value)?),
            "typical_p" => self.typical_p = Some(share(value)?),
            "seed" => self.seed = Some(whole(value)?),
            "num_predict" | "max_tokens" => self.max_tokens = Some(whole(value)?),
            "stop" => self.stop.push(value.to_owned()),
            "repeat_penalty" => self.repeat_penalty = Some(fraction(value)?),
            "repeat_last_n" => self.repeat_last_n = Some(whole(value)?),
            "presence_penalty" => self.presence_penalty = Some(signed_fraction(value)?),
            "frequency_penalty" => self.frequency_penalty = Some(signed_fraction(value)?),
            _ => {
                return Err(format!(
                    "no parameter '{name}'; `/set parameter` lists them"
                ));
            }
        }
        Ok(())
    }
}

fn whole<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse()
        .map_err(|_| format!("'{text}' is not a whole number in range"))
}

/// A fraction of at least 0, such as `0.8`, times 10^6.
fn fraction(text: &str) -> Result<u64, String> {
    let wrong = || format!("'{text}' is not a number of at least 0 with at most six decimals");
    let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if text.len() > 12
        || decimals.len() > 6
        || !digits(whole)
        || !digits(decimals)
        || (whole.is_empty() && decimals.is_empty())
    {
        return Err(wrong());
    }
    let whole: u64 = if whole.is_empty() {
        0
    } else {
        whole.parse().map_err(|_| wrong())?
    };
    let millionths: u64 = format!("{decimals:0<6}").parse().map_err(|_| wrong())?;
    Ok(whole * ONE + millionths)
}

/// A fraction from 0 to 1.
fn share(text: &str) -> Result<u64, String> {
    Some(fraction(text)?)
        .filter(|share| *share <= ONE)
        .ok_or_else(|| format!("'{text}' is not between 0 and 1"))
}

fn signed_fraction(text: &str) -> Result<i64, String> {
    let (sign, digits) = text
        .strip_prefix('-')
        .map_or((1, text), |digits| (-1, digits));
    let size = i64::try_from(fraction(digits)?).map_err(|error| error.to_string())?;
    Ok(sign * size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fractions_keep_their_decimal_digits() {
        let cases = [
            ("0", 0),
            ("0.8", 800_000),
            (".5", 500_000),
            ("1.", 1_000_000),
            ("2.000001", 2_000_001),
        ];
        for (text, millionths) in cases {
            assert_eq!(fraction(text), Ok(millionths));
        }
        for text in ["", ".", "-1", "1e3", "0.1234567", "nan", "0,8"] {
            assert!(fraction(text).is_err(), "{text}");
        }
        assert!(share("1.000001").is_err());
        assert_eq!(signed_fraction("-0.5"), Ok(-500_000));
    }

    #[test]
    fn every_listed_parameter_can_be_set() {
        let mut sampling = Sampling::default();
        for (name, _) in PARAMETERS {
            sampling.set(name, "1").unwrap();
        }
        let mut request = v1::RunRequest::default();
        sampling.apply(&mut request);
        assert_eq!(request.sampler.unwrap().repeat, ONE);
        assert_eq!(
            (request.seed, request.max_tokens, request.stop.len()),
            (Some(1), Some(1), 1)
        );
        assert_eq!(request.said.len(), PARAMETERS.len());
        assert!(sampling.set("mirostat", "1").is_err());
    }
}
