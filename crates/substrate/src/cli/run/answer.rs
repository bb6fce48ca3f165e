//! One answer, as it comes: text to stdout, news to stderr, or every event as a line of JSON.
//!
//! Invariant: stdout has the answer and nothing else, whole or up to where it ended.

use serde_json::{Value, json};
use substrate_api::v1::{self, job_event::Event};

use crate::cli::{
    connect::Client,
    jobs::waiting,
    session::{Session, aside, note, watched},
    story::{Story, refusal_story, refused},
    words,
};
use crate::thoughts::{Begins, Ear, Heard};

/// How to show an answer.
#[derive(Debug, Clone, Copy)]
pub struct Manner {
    /// Events as lines of JSON instead of text.
    pub json: bool,
    /// Tell who answered and how fast.
    pub verbose: bool,
    /// How the answer begins, if there may be thoughts in it.
    pub begins: Option<Begins>,
    /// Leave its thoughts out.
    pub hides_thoughts: bool,
}

/// A whole answer.
#[derive(Default)]
pub struct Answer {
    /// What the model thought before it.
    pub thoughts: String,
    /// What was asked for.
    pub text: String,
}

/// Asks, shows the answer as it comes, and gives all of it.
pub async fn stream(
    session: &Session,
    client: &mut Client,
    request: v1::RunRequest,
    manner: Manner,
) -> anyhow::Result<Answer> {
    let mut events = client.run(request).await.map_err(refused)?.into_inner();
    let mut answer = Answer::default();
    let mut ear = manner.begins.map(Ear::new);
    while let Some(event) = events.message().await.map_err(refused)? {
        let Some(event) = event.event else { continue };
        let heard = heard(&event, ear.as_mut());
        if manner.json {
            tell_json(session, &event, &heard)?;
        }
        show(session, &mut answer, heard, manner)?;
        match event {
            Event::Text(_) => {}
            Event::Finished(finished) => {
                end(session, &answer.text, manner)?;
                if manner.verbose {
                    note(summary(&finished));
                }
                return Ok(answer);
            }
            Event::Failed(refusal) => {
                if !answer.text.is_empty() {
                    end(session, &answer.text, manner)?;
                }
                return Err(refusal_story(refusal).into());
            }
            news => tell(&news, &answer.text, manner),
        }
    }
    Err(Story::new("the daemon ended the answer early")
        .hint("run `substrate doctor`")
        .into())
}

/// What an event adds to the answer: the end tells what was held back.
fn heard(event: &Event, ear: Option<&mut Ear>) -> Heard {
    match (event, ear) {
        (Event::Text(piece), Some(ear)) => ear.hear(&piece.text),
        (Event::Text(piece), None) => Heard {
            text: piece.text.clone(),
            ..Heard::default()
        },
        (Event::Finished(_) | Event::Failed(_), Some(ear)) => ear.end(),
        _ => Heard::default(),
    }
}

/// Thoughts go to stderr, between Ollama's words, the answer to stdout.
fn show(
    session: &Session,
    answer: &mut Answer,
    heard: Heard,
    manner: Manner,
) -> std::io::Result<()> {
    let shows_thoughts = !manner.json && !manner.hides_thoughts;
    if shows_thoughts && !heard.thoughts.is_empty() {
        if answer.thoughts.is_empty() {
            note("Thinking...");
        }
        aside(&heard.thoughts);
    }
    answer.thoughts.push_str(&heard.thoughts);
    if heard.text.is_empty() {
        return Ok(());
    }
    if shows_thoughts && answer.text.is_empty() && !answer.thoughts.is_empty() {
        note("\n...done thinking.\n");
    }
    answer.text.push_str(&heard.text);
    if manner.json {
        return Ok(());
    }
    session.text(&heard.text)
}

/// Ends the answer's last line.
fn end(session: &Session, answer: &str, manner: Manner) -> std::io::Result<()> {
    if manner.json || answer.ends_with('\n') {
        Ok(())
    } else {
        session.text("\n")
    }
}

/// News about the job, for who watches or asked for them. A move is always told.
fn tell(news: &Event, answer: &str, manner: Manner) {
    let curious = manner.verbose || watched();
    match news {
        Event::Queued(queued) if curious => note(format_args!("waiting: {}", waiting(queued))),
        Event::Started(started) if manner.verbose => note(format_args!(
            "node {} ({}) reads {} tokens, attempt {}",
            words::short_node(&started.node),
            words::route(started.route),
            started.n_in,
            started.attempt
        )),
        Event::Moved(moved) => {
            // On a terminal the answer's line is open.
            let gap = if watched() && !answer.is_empty() && !answer.ends_with('\n') {
                "\n"
            } else {
                ""
            };
            note(format_args!(
                "{gap}node {} is gone after {} ({}); the answer goes on at another",
                words::short_node(&moved.from),
                words::count(moved.after_tokens, "token"),
                moved.why
            ));
        }
        _ => {}
    }
}

/// The one line of `--verbose`.
pub fn summary(finished: &v1::Finished) -> String {
    let timings = finished.timings.unwrap_or_default();
    let rate = words::speed(finished.n_out, timings.decode).map(words::rate);
    let before = timings.total.saturating_sub(timings.decode);
    let alone = match finished.isolated {
        true => format!(
            ", a worker of its own (loaded in {})",
            words::wait(timings.load)
        ),
        false => String::new(),
    };
    format!(
        "node {} ({}), scope {}, wall {}{alone}: {} + {} tokens, {}, begun after {}, {} in all, attempts {}, ended by {}, receipt {}",
        words::short_node(&finished.node),
        words::route(finished.route),
        words::scope(finished.scope),
        words::wall(finished.wall),
        finished.n_in,
        finished.n_out,
        rate.as_deref().unwrap_or("too short to time"),
        words::wait(before),
        words::wait(timings.total),
        finished.attempts,
        words::finish(finished.finish),
        finished
            .receipt
            .as_deref()
            .map_or_else(|| "none".to_owned(), words::hex),
    )
}

/// An event as a line. What only the end made sure of is a line of its own before it.
fn tell_json(session: &Session, event: &Event, heard: &Heard) -> std::io::Result<()> {
    match event {
        Event::Text(piece) => session.json_line(&heard_json(heard, &piece.ids)),
        event => {
            if *heard != Heard::default() {
                session.json_line(&heard_json(heard, &[]))?;
            }
            session.json_line(&as_json(event))
        }
    }
}

fn heard_json(heard: &Heard, ids: &[u32]) -> Value {
    let mut told = json!({ "event": "text", "text": heard.text, "ids": ids });
    if !heard.thoughts.is_empty() {
        told["thinking"] = heard.thoughts.clone().into();
    }
    told
}

fn as_json(event: &Event) -> Value {
    match event {
        Event::Taken(taken) => json!({
            "event": "taken",
            "job": words::hex(&taken.job),
            "scope": words::scope(taken.scope),
            "model": taken.model,
        }),
        Event::Queued(queued) => json!({
            "event": "queued",
            "position": queued.position,
            "expected_wait_ms": queued.expected_wait_ms,
            "why": queued.why,
        }),
        Event::Started(started) => json!({
            "event": "started",
            "node": words::hex(&started.node),
            "route": words::route(started.route),
            "n_in": started.n_in,
            "attempt": started.attempt,
        }),
        Event::Text(piece) => json!({ "event": "text", "text": piece.text, "ids": piece.ids }),
        Event::Moved(moved) => json!({
            "event": "moved",
            "from": words::hex(&moved.from),
            "after_tokens": moved.after_tokens,
            "why": moved.why,
        }),
        Event::Finished(finished) => finished_json(finished),
        Event::Failed(refusal) => json!({ "event": "failed", "error": refusal.message }),
        Event::Row(row) => json!({ "event": "row", "components": row.components }),
    }
}

/// The end of a job, for programs.
pub fn finished_json(finished: &v1::Finished) -> Value {
    let timings = finished.timings.unwrap_or_default();
    json!({
        "event": "finished",
        "finish": words::finish(finished.finish),
        "n_in": finished.n_in,
        "n_out": finished.n_out,
        "node": words::hex(&finished.node),
        "route": words::route(finished.route),
        "scope": words::scope(finished.scope),
        "wall": words::wall(finished.wall),
        "isolated": finished.isolated,
        "attempts": finished.attempts,
        "receipt": finished.receipt.as_deref().map(words::hex),
        "model_sha256": words::hex(&finished.model_sha256),
        "timings_ms": {
            "queue": timings.queue,
            "route": timings.route,
            "load": timings.load,
            "prefill": timings.prefill,
            "decode": timings.decode,
            "total": timings.total,
        },
    })
}
