//! The two halves of a hello exchange, each on its own stream.
//!
//! Invariant: both end within [`HELLO_DEADLINE`], whatever the peer does.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::time::timeout;

use super::Greeting;
use crate::frame::framed;
use crate::hello::{Hello, HelloFrame, HelloMismatch};
use crate::standing::Offence;
use crate::stream::MeshStream;

/// Both exchanges of a connection are done by then, or it is closed. Two round trips over
/// the worst line in use (a second each, under loss), with room.
pub(crate) const HELLO_DEADLINE: Duration = Duration::from_secs(6);

/// How long the refusing side waits for the refused one to read the reason before it closes.
const LINGER: Duration = Duration::from_secs(1);

/// What the asking side learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Measured {
    /// Round trip of the exchange.
    pub(crate) rtt: Duration,
    /// Their wall clock minus ours, by the midpoint of the exchange.
    pub(crate) skew_ms: i64,
}

/// Why a connection ends at its hello.
pub(crate) struct Parting {
    pub(crate) why: HelloMismatch,
    pub(crate) offence: Option<Offence>,
    /// Ends when the peer has read the reason, or has had time to: closing the connection at
    /// once could overtake it.
    pub(crate) linger: Option<BoxFuture<'static, ()>>,
}

impl Parting {
    pub(crate) fn over(why: HelloMismatch) -> Self {
        Self {
            why,
            offence: None,
            linger: None,
        }
    }

    fn for_offence(offence: Offence) -> Self {
        Self {
            why: HelloMismatch::Malformed,
            offence: Some(offence),
            linger: None,
        }
    }
}

/// Introduces this node and waits for the answer.
pub(crate) async fn ask(stream: MeshStream, ours: Arc<Greeting>) -> Result<Measured, Parting> {
    timeout(HELLO_DEADLINE, ask_unbounded(stream, &ours.hello))
        .await
        .unwrap_or(Err(no_hello()))
}

async fn ask_unbounded(stream: MeshStream, ours: &Hello) -> Result<Measured, Parting> {
    let (mut reader, mut writer) = framed::<_, HelloFrame>(stream);
    let begun = Instant::now();
    let echo = monotonic_us();
    let hello = HelloFrame::Hello {
        hello: ours.clone(),
        echo,
    };
    writer.send(&hello).await.map_err(|_| no_hello())?;
    let answer = reader.next().await.map_err(|error| unreadable(&error))?;
    let rtt = begun.elapsed();
    let _ = writer.close().await;
    match answer {
        HelloFrame::Welcome {
            echo: echoed,
            wall_ms,
        } if echoed == echo => {
            let half = i64::try_from(rtt.as_millis() / 2).unwrap_or(i64::MAX);
            Ok(Measured {
                rtt,
                skew_ms: wall_ms.saturating_add(half).saturating_sub(wall_clock_ms()),
            })
        }
        HelloFrame::Refused { why } => Err(Parting::over(why)),
        HelloFrame::Welcome { .. } | HelloFrame::Hello { .. } => {
            Err(Parting::for_offence(Offence::OutOfOrder))
        }
    }
}

/// Hears a peer's introduction and answers it.
pub(crate) async fn answer(stream: MeshStream, ours: Arc<Greeting>) -> Result<Hello, Parting> {
    let (mut reader, mut writer) = framed::<_, HelloFrame>(stream);
    let heard = timeout(HELLO_DEADLINE, reader.next()).await;
    let verdict = match heard {
        Err(_) => Err(no_hello()),
        Ok(Err(error)) => Err(unreadable(&error)),
        Ok(Ok(HelloFrame::Hello { hello, echo })) => ours
            .hello
            .check(&hello, ours.joins_open)
            .map(|()| (hello, echo))
            .map_err(Parting::over),
        Ok(Ok(_)) => Err(Parting::for_offence(Offence::OutOfOrder)),
    };
    let reply = match &verdict {
        Ok((_, echo)) => HelloFrame::Welcome {
            echo: *echo,
            wall_ms: wall_clock_ms(),
        },
        Err(parting) => HelloFrame::Refused {
            why: parting.why.as_told_by(&ours.hello),
        },
    };
    let sending = async { writer.send(&reply).await.is_ok() && writer.close().await.is_ok() };
    let sent = timeout(HELLO_DEADLINE, sending).await.unwrap_or(false);
    match verdict {
        Ok((hello, _)) if sent => Ok(hello),
        Ok(_) => Err(no_hello()),
        Err(mut parting) => {
            // Both halves stay alive in the future: dropping one would reset the stream.
            let linger = async move {
                let _ = timeout(LINGER, reader.next()).await;
                drop(writer);
            };
            parting.linger = sent.then(|| linger.boxed());
            Err(parting)
        }
    }
}

fn no_hello() -> Parting {
    Parting::over(HelloMismatch::NoHello)
}

fn unreadable(error: &crate::frame::ReadError) -> Parting {
    match error.offence() {
        Some(offence) => Parting::for_offence(offence),
        None => no_hello(),
    }
}

/// Microseconds since this program first asked: ties an answer to its question, and says nothing of the date.
fn monotonic_us() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    u64::try_from(START.get_or_init(Instant::now).elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// This machine's wall clock. Shown to people; no decision reads it.
fn wall_clock_ms() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
