//! Streams of server-sent events: the loop behind them, and the comments about a job between the pieces of its answer.
//!
//! Invariants: a stream that waits says so every few seconds; dropping it drops its feed, which cancels its jobs.

use std::time::Duration;

use futures::Stream;
use serde::Serialize;
use substrate_record::NodeId;

use super::job::{Beat, Feed};
use super::names::route_name;
use super::sse;
use crate::door::{JobEvent, QueueNews, Started};

/// How often a waiting client is told where it stands (DESIGN 5).
pub(super) const QUEUE_EVERY: Duration = Duration::from_secs(2);

/// How often an idle stream shows that it lives.
pub(super) const PING_EVERY: Duration = Duration::from_secs(10);

/// Writes one request's stream in its API's words. Pure: events in, text out.
pub(super) trait Writer {
    /// What is told of an event.
    fn on(&mut self, index: usize, event: JobEvent) -> String;

    /// What is told after [`Writer::patience`].
    fn on_quiet(&self) -> String;

    /// How long the stream may stay silent.
    fn patience(&self) -> Duration;

    /// Nothing may follow but [`Writer::close`].
    fn is_over(&self) -> bool;

    /// The end of a good stream. Empty for a failed one.
    fn close(&self, feed: &Feed) -> String;
}

/// Follows the jobs to their end. Dropping the stream drops the feed, which cancels them.
pub(super) fn stream(
    mut writer: impl Writer + Send,
    mut feed: Feed,
) -> impl Stream<Item = String> + Send {
    async_stream::stream! {
        while let Some(beat) = feed.next(writer.patience()).await {
            let told = match beat {
                Beat::Event(index, event) => writer.on(index, event),
                Beat::Quiet => writer.on_quiet(),
            };
            if !told.is_empty() {
                yield told;
            }
            if writer.is_over() {
                break;
            }
        }
        let end = writer.close(&feed);
        if !end.is_empty() {
            yield end;
        }
    }
}

/// Where a waiting job stands.
pub(super) fn queue(news: &QueueNews) -> String {
    #[derive(Serialize)]
    struct Queue<'a> {
        position: u32,
        expected_wait_ms: u64,
        why: &'a str,
    }
    let QueueNews {
        position,
        expected_wait_ms,
        why,
    } = news;
    let queue = Queue {
        position: *position,
        expected_wait_ms: *expected_wait_ms,
        why,
    };
    sse::comment("queue", &queue)
}

/// Who has begun.
pub(super) fn started(started: &Started) -> String {
    let (node, route) = (started.node.to_string(), route_name(started.route));
    sse::comment(
        "started",
        &serde_json::json!({ "attempt": started.attempt, "node": node, "route": route }),
    )
}

/// That another node takes over.
pub(super) fn moved(from: NodeId, after_tokens: u32, why: &str) -> String {
    #[derive(Serialize)]
    struct Moved<'a> {
        from: String,
        after_tokens: u32,
        why: &'a str,
    }
    let from = from.to_string();
    sse::comment(
        "moved",
        &Moved {
            from,
            after_tokens,
            why,
        },
    )
}
