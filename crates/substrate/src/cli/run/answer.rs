//! One answer, as it comes: text to stdout, news to stderr, or every event as a line of JSON.
//!
//! Invariant: stdout has the answer and nothing else, whole or up to where it ended.

use serde_json::{Value, json};
use substrate_api::v1::{self, job_event::Event};

use crate::cli::{
    connect::Client,
    jobs::waiting,
    session::{Session, note, watched},
    story::{Story, refusal_story, refused},
    words,
};

/// How to show an answer.
#[derive(Debug, Clone, Copy)]
pub struct Manner {
    /// Events as lines of JSON instead of text.
    pub json: bool,
    /// Tell who answered and how fast.
    pub verbose: bool,
}

/// Asks, shows the answer as it comes, and gives its whole text.
pub async fn stream(
    session: &Session,
    client: &mut Client,
    request: v1::RunRequest,
    manner: Manner,
) -> anyhow::Result<String> {
    let mut events = client.run(request).await.map_err(refused)?.into_inner();
    let mut answer = String::new();
    while let Some(event) = events.message().await.map_err(refused)? {
        let Some(event) = event.event else { continue };
        if manner.json {
            session.json_line(&as_json(&event))?;
        }
        match event {
            Event::Text(piece) => {
                if !manner.json {
                    session.text(&piece.text)?;
                }
                answer.push_str(&piece.text);
            }
            Event::Finished(finished) => {
                end(session, &answer, manner)?;
                if manner.verbose {
                    note(summary(&finished));
                }
                return Ok(answer);
            }
            Event::Failed(refusal) => {
                if !answer.is_empty() {
                    end(session, &answer, manner)?;
                }
                return Err(refusal_story(refusal).into());
            }
            news => tell(&news, &answer, manner),
        }
    }
    Err(Story::new("the daemon ended the answer early")
        .hint("run `substrate doctor`")
        .into())
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
    format!(
        "node {} ({}), scope {}, wall {}: {} + {} tokens, {}, begun after {}, {} in all, attempts {}, ended by {}, receipt {}",
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
