//! Answers bound to a JSON schema: which tokens may come next.
//!
//! The automaton is llguidance's: an Earley parser over a lexer of derivatives, walked along the trie of the
//! vocabulary instead of token by token (docs/benchmarks.md tells its cost). Here are its limits, and the way from a mask to logits.
//!
//! Invariant: a schema is a stranger's text: it is parsed inside the wall, with fuel for building and for
//! each step, and no error quotes it. Between tokens of JSON at most one space is allowed, and a number has so many
//! digits at most (`numerals.rs`), so that an answer cannot run on in either for ever.
//! Absent by design: references to other documents, files, networks; the feature for them is off.

use std::sync::Arc;

use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{InferenceCapabilities, TokEnv, TokRxInfo, TokTrie, TokenizerEnv};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};
use substrate_sandbox::wire::Failure;

use crate::ffi::Model;
use crate::numerals::{Numerals, leading_digits};
use crate::refusal::Refusal;

/// The longest schema, in bytes: the largest published ones are half as long.
const MAX_SCHEMA: usize = 256 * 1024;

/// Fuel for building the lexer of a schema: 20 ms at the library's stated 50,000 a millisecond.
const BUILD_FUEL: u64 = 1_000_000;

/// Fuel and items for the mask of one token: under 20 ms, as long as a token takes anyway.
const STEP_FUEL: u64 = 200_000;
const STEP_ITEMS: usize = 50_000;

/// Lexer states: at 2 KiB each, 64 MiB.
const LEXER_STATES: usize = 32_000;

/// Symbols of a grammar: a megabyte of schema text.
const GRAMMAR_SIZE: usize = 100_000;

/// Grammars over the vocabulary of one model.
pub struct Grammars {
    factory: ParserFactory,
    digits: Arc<Digits>,
}

/// Where an answer stands in its schema.
pub struct Grammar {
    matcher: Matcher,
    vocabulary: TokEnv,
    digits: Arc<Digits>,
    numerals: Numerals,
}

/// Tokens that begin with digits, and how many.
type Digits = [(u32, usize)];

/// The grammar has no way to go on: its limits were spent, or a token came that it forbids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the schema takes too much to follow")]
pub struct Spent;

struct Vocabulary(TokTrie);

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.0
    }

    fn tokenize_bytes(&self, text: &[u8]) -> Vec<u32> {
        self.0.greedy_tokenize(text)
    }
}

impl Grammars {
    /// Reads the vocabulary, once per model.
    ///
    /// # Errors
    /// The model has no token that ends an answer.
    pub fn over(model: &Model) -> Result<Grammars, Refusal> {
        let unsupported = || {
            Refusal::new(
                Failure::Unsupported,
                "this model's vocabulary takes no schema",
            )
        };
        let end = model.eos().ok_or_else(unsupported)?;
        let words: Vec<Vec<u8>> = (0..model.n_vocab()).map(|id| word(model, id)).collect();
        let digits = (0..)
            .zip(&words)
            .map(|(id, word)| (id, leading_digits(word)))
            .filter(|(_, digits)| *digits > 0)
            .collect();
        let trie = TokTrie::from(&TokRxInfo::new(model.n_vocab(), end), &words);
        let vocabulary: TokEnv = Arc::new(Vocabulary(trie));
        let mut factory = ParserFactory::new(
            &vocabulary,
            InferenceCapabilities::default(),
            &SlicedBiasComputer::json_slices(),
        )
        .map_err(|_| unsupported())?;
        factory.quiet();
        *factory.limits_mut() = ParserLimits {
            initial_lexer_fuel: BUILD_FUEL,
            step_lexer_fuel: STEP_FUEL,
            step_max_items: STEP_ITEMS,
            max_lexer_states: LEXER_STATES,
            max_grammar_size: GRAMMAR_SIZE,
            verbose_errors: false,
            ..ParserLimits::default()
        };
        Ok(Grammars { factory, digits })
    }

    /// The grammar of a JSON schema.
    ///
    /// # Errors
    /// It is too long, no JSON, impossible, or beyond what is supported.
    pub fn schema(&self, text: &str) -> Result<Grammar, Refusal> {
        let refuse = |why: &str| Refusal::new(Failure::BadInput, why);
        if text.len() > MAX_SCHEMA {
            return Err(refuse("the json schema is longer than 256 KiB"));
        }
        let mut schema: Value =
            serde_json::from_str(text).map_err(|_| refuse("the json schema is no json"))?;
        let Some(object) = schema.as_object_mut() else {
            return Err(refuse("a json schema is an object"));
        };
        object.insert(
            "x-guidance".into(),
            json!({ "whitespace_flexible": false, "item_separator": ", ?", "key_separator": ": ?" }),
        );
        let parser = self
            .factory
            .create_parser(TopLevelGrammar::from_json_schema(schema));
        let parser = parser.map_err(|error| refuse(kind(&error.to_string())))?;
        let mut matcher = Matcher::new(Ok(parser));
        // A schema that nothing satisfies has no first token.
        match matcher.compute_mask() {
            Ok(mask) if !mask.is_zero() => Ok(Grammar {
                matcher,
                vocabulary: self.factory.tok_env().clone(),
                digits: self.digits.clone(),
                numerals: Numerals::default(),
            }),
            Ok(_) => Err(refuse("nothing satisfies the json schema")),
            Err(_) => Err(refuse("the json schema takes too much to follow")),
        }
    }
}

/// What the library says of a schema, without the schema's own words, which are a prompt's.
fn kind(error: &str) -> &'static str {
    let has = |word: &str| error.to_ascii_lowercase().contains(word);
    if has("unsatisfiable") {
        "nothing satisfies the json schema"
    } else if has("unimplemented") || has("unsupported") || has("not supported") {
        "the json schema uses a keyword that is not supported"
    } else if has("$ref") || has("reference") {
        "the json schema has a reference that leads nowhere in it"
    } else if has("fuel") || has("too large") || has("too big") || has("limit") {
        "the json schema takes too much to build"
    } else {
        "the json schema is not valid"
    }
}

impl Grammar {
    /// Forbids every token that must not come next.
    ///
    /// # Errors
    /// The limits were spent.
    pub fn forbid(&mut self, logits: &mut [f32]) -> Result<(), Spent> {
        let mut mask = self.matcher.compute_mask_or_eos().map_err(|_| Spent)?;
        let room = self.numerals.room();
        let mut bounded = mask.clone();
        for (id, _) in self.digits.iter().filter(|(_, digits)| *digits > room) {
            bounded.disallow_token(*id);
        }
        // A schema that asks for more digits gets them.
        if !bounded.is_zero() {
            mask = bounded;
        }
        for (id, logit) in (0..).zip(logits) {
            if !mask.is_allowed(id) {
                *logit = f32::NEG_INFINITY;
            }
        }
        Ok(())
    }

    /// Goes on after `id`.
    ///
    /// # Errors
    /// The grammar forbids it, or the limits were spent.
    pub fn accept(&mut self, id: u32) -> Result<(), Spent> {
        self.numerals.read(self.vocabulary.tok_trie().token(id));
        self.matcher.consume_token(id).map_err(|_| Spent)
    }
}

/// The bytes of a token; a special one is marked, so that no text can be taken for it.
fn word(model: &Model, id: u32) -> Vec<u8> {
    let (mut plain, mut special) = (Vec::new(), Vec::new());
    let known =
        model.piece(id, false, &mut plain).is_ok() && model.piece(id, true, &mut special).is_ok();
    match (known, plain.is_empty()) {
        (false, _) => Vec::new(),
        (true, true) => [&[TokTrie::SPECIAL_TOKEN_MARKER], special.as_slice()].concat(),
        (true, false) => plain,
    }
}
