//! Vectors of texts, for both APIs: the job they ask for, and its rows as their clients want them.
//!
//! Invariant: as many rows as texts, in their order, each of length 1 (L2), also when fewer components are asked for.
//! Absent by design: token ids in the place of texts. They are a model's own, and its client does not know which
//! model will answer.

use substrate_record::Sampler;
use substrate_sandbox::wire::input::{Input, MAX_TEXTS};

use super::App;
use super::body::TextsOf;
use super::error::Refusal;
use super::guard::Caller;
use super::job::{Answer, DEADLINE_MS, Running, submit};
use super::names::model_name;
use crate::door::{Ask, Placement};
use crate::models::parameters::Said;

/// One text or a list of them.
pub(super) type Texts = TextsOf<MAX_TEXTS>;

/// What is asked.
pub(super) struct Wanted {
    pub(super) model: String,
    pub(super) texts: Vec<String>,
    /// Whether a text over the model's context is cut at its end.
    pub(super) truncate: bool,
    /// Components to keep, from the first on; all if not said.
    pub(super) dimensions: Option<i64>,
}

/// Has the texts embedded.
///
/// # Errors
/// The request's own faults, and whatever kept the job from being answered.
pub(super) async fn embed(
    app: &App,
    caller: &Caller,
    wanted: Wanted,
) -> Result<(Answer, Vec<Vec<f32>>), Refusal> {
    let ask = Ask {
        model: model_name("model", &wanted.model)?,
        input: Input::texts(wanted.texts, wanted.truncate),
        sampler: NOTHING_DRAWN,
        said: Said::new(),
        seed: None,
        choice: 0,
        max_tokens: None,
        scope: Some(caller.scope),
        placement: Placement::Any,
        wall: None,
        isolated: caller.isolated,
        deadline_ms: DEADLINE_MS,
        client: caller.client.clone(),
        patient: caller.patient,
    };
    let dimensions = dimensions(wanted.dimensions)?;
    let mut jobs = submit(app, caller, vec![ask]).await?;
    let running: Running = jobs
        .pop()
        .ok_or_else(|| Refusal::internal("no job was taken"))?;
    let mut answer = running.whole().await?;
    let rows = std::mem::take(&mut answer.rows);
    let rows = rows.iter().map(|row| shortened(row, dimensions));
    let rows = rows.collect::<Result<_, _>>()?;
    Ok((answer, rows))
}

/// A job of vectors draws nothing.
pub(crate) const NOTHING_DRAWN: Sampler = Sampler {
    temperature: 0,
    top_k: 0,
    top_p: 1_000_000,
    min_p: 0,
    typical_p: 1_000_000,
    repeat_last_n: 0,
    repeat: 1_000_000,
    presence: 0,
    frequency: 0,
    n: 1,
    top_logprobs: None,
};

fn dimensions(asked: Option<i64>) -> Result<Option<usize>, Refusal> {
    let Some(asked) = asked else { return Ok(None) };
    match usize::try_from(asked) {
        Ok(count) if count > 0 => Ok(Some(count)),
        _ => Err(Refusal::invalid(
            "dimensions",
            format!("dimensions must be at least 1, not {asked}"),
        )),
    }
}

/// The first components of a row, at length 1 again (Matryoshka representations, arXiv 2205.13147).
#[expect(
    clippy::cast_possible_truncation,
    reason = "components are f32; their sum of squares is not to lose what they have"
)]
fn shortened(row: &[u8], dimensions: Option<usize>) -> Result<Vec<f32>, Refusal> {
    let (components, _) = row.as_chunks::<4>();
    let mut row: Vec<f32> = components.iter().copied().map(f32::from_le_bytes).collect();
    let Some(wanted) = dimensions.filter(|wanted| *wanted != row.len()) else {
        return Ok(row);
    };
    if wanted > row.len() {
        let why = format!(
            "dimensions must be at most {}, the components of this model's vectors, not {wanted}",
            row.len()
        );
        return Err(Refusal::invalid("dimensions", why));
    }
    row.truncate(wanted);
    let squares: f64 = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    if squares > 0.0 {
        let length = squares.sqrt();
        row.iter_mut()
            .for_each(|x| *x = (f64::from(*x) / length) as f32);
    }
    Ok(row)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fewer_components_have_length_one_again() {
        let row: Vec<u8> = [0.6f32, 0.0, 0.8]
            .iter()
            .flat_map(|x| x.to_le_bytes())
            .collect();
        let cut = |wanted| shortened(&row, dimensions(wanted).unwrap());
        assert_eq!(cut(None).unwrap(), [0.6, 0.0, 0.8]);
        assert_eq!(cut(Some(3)).unwrap(), [0.6, 0.0, 0.8]);
        assert_eq!(cut(Some(2)).unwrap(), [1.0, 0.0]);
        assert!(cut(Some(4)).is_err());
        assert!(dimensions(Some(0)).is_err());
    }
}
