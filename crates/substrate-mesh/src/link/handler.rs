//! One connection: its hello, and the streams on it.
//!
//! Invariant: inbound streams that come before the hellos are done wait in a short list; they are
//! handed out or dropped once it is known which.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::FutureExt;
use futures::future::{BoxFuture, ready};
use futures::stream::{FuturesUnordered, StreamExt};
use libp2p::StreamProtocol;
use libp2p::swarm::handler::{
    ConnectionEvent, ConnectionHandler, ConnectionHandlerEvent, DialUpgradeError,
    FullyNegotiatedInbound, FullyNegotiatedOutbound, StreamUpgradeError, SubstreamProtocol,
};
use tokio::sync::oneshot;
use tokio::time::{Sleep, sleep};

use super::exchange::{self, HELLO_DEADLINE, Measured, Parting};
use super::offered::Offered;
use super::{Allowance, Greeting};
use crate::event::OpenError;
use crate::hello::{Hello, HelloMismatch};
use crate::name::{HELLO, Protocol};
use crate::standing::Offence;
use crate::stream::MeshStream;

/// Streams that may wait for the hellos of a connection.
const EARLY_STREAMS: usize = 8;

/// Hellos a peer may have under way at once: the first, and one for a new session.
const HELLOS_AT_ONCE: usize = 2;

/// Who gets a stream.
pub(crate) type StreamReply = oneshot::Sender<Result<MeshStream, OpenError>>;

/// What the behaviour tells a connection.
#[derive(Debug)]
pub(crate) enum ToHandler {
    /// Open a stream. Sent only after [`FromHandler::Greeted`].
    Open(Protocol, StreamReply),
    /// The session changed: say hello again.
    Greet(Arc<Greeting>),
    /// Whether the connection stays while it is idle.
    Keep(bool),
}

/// What a connection tells the behaviour.
#[derive(Debug)]
pub(crate) enum FromHandler {
    /// Both hellos are done, or the peer said hello again.
    Greeted(Hello, Measured),
    /// The connection ends at its hello.
    Parted(HelloMismatch),
    /// And may be closed now.
    Close,
    /// The peer opened a stream.
    Inbound(Protocol, MeshStream),
    /// The peer broke the protocol.
    Offended(Offence),
}

/// Where a connection stands.
enum Gate {
    /// Until both hellos are done, or this runs out.
    Waiting(Pin<Box<Sleep>>),
    /// Work may begin.
    Open,
    /// The end of the connection, once the peer has had time to read why.
    Parting(BoxFuture<'static, ()>),
    /// The behaviour was told to close it.
    Closed,
}

/// What an outbound stream was asked for.
pub(crate) enum Purpose {
    Hello,
    Open(StreamReply),
}

type Event = ConnectionHandlerEvent<Offered, Purpose, FromHandler>;

pub(crate) struct Handler {
    ours: Arc<Greeting>,
    allowance: Arc<Allowance>,
    theirs: Option<Hello>,
    measured: Option<Measured>,
    asking: Option<BoxFuture<'static, Result<Measured, Parting>>>,
    answering: FuturesUnordered<BoxFuture<'static, Result<Hello, Parting>>>,
    gate: Gate,
    early: Vec<(Protocol, libp2p::Stream)>,
    events: VecDeque<Event>,
    keep: bool,
}

impl Handler {
    pub(super) fn new(ours: Arc<Greeting>, allowance: Arc<Allowance>) -> Self {
        let mut handler = Self {
            ours,
            allowance,
            theirs: None,
            measured: None,
            asking: None,
            answering: FuturesUnordered::new(),
            gate: Gate::Waiting(Box::pin(sleep(HELLO_DEADLINE))),
            early: Vec::new(),
            events: VecDeque::new(),
            keep: true,
        };
        handler.request(HELLO, Purpose::Hello);
        handler
    }

    fn request(&mut self, name: StreamProtocol, purpose: Purpose) {
        self.events
            .push_back(ConnectionHandlerEvent::OutboundSubstreamRequest {
                protocol: SubstreamProtocol::new(Offered(vec![name]), purpose),
            });
    }

    fn tell(&mut self, event: FromHandler) {
        self.events
            .push_back(ConnectionHandlerEvent::NotifyBehaviour(event));
    }

    fn on_inbound(&mut self, stream: libp2p::Stream, name: &StreamProtocol) {
        let protocol = self.ours.names.protocol(name);
        match (protocol, &self.gate) {
            (_, Gate::Parting(_) | Gate::Closed) => {}
            (None, _) if self.answering.len() < HELLOS_AT_ONCE => {
                let stream = MeshStream::new(stream, None);
                self.answering
                    .push(exchange::answer(stream, Arc::clone(&self.ours)).boxed());
            }
            (Some(protocol), Gate::Open) => self.hand_out(protocol, stream),
            (Some(protocol), Gate::Waiting(_)) if self.early.len() < EARLY_STREAMS => {
                self.early.push((protocol, stream));
            }
            _ => self.tell(FromHandler::Offended(Offence::Flood)),
        }
    }

    /// Gives an inbound stream to the daemon, within the peer's rights and allowance.
    fn hand_out(&mut self, protocol: Protocol, stream: libp2p::Stream) {
        let joiner = self.theirs.as_ref().is_some_and(Hello::is_joiner);
        if joiner && protocol != Protocol::Join {
            return self.tell(FromHandler::Offended(Offence::OutOfOrder));
        }
        match self.allowance.take(protocol) {
            Some(permit) => {
                self.tell(FromHandler::Inbound(
                    protocol,
                    MeshStream::new(stream, Some(permit)),
                ));
            }
            None => self.tell(FromHandler::Offended(Offence::Flood)),
        }
    }

    fn on_measured(&mut self, outcome: Result<Measured, Parting>) {
        match outcome {
            Ok(measured) => {
                self.measured = Some(measured);
                self.greeted();
            }
            Err(parting) => self.part(parting),
        }
    }

    fn on_introduced(&mut self, outcome: Result<Hello, Parting>) {
        match outcome {
            Ok(hello) => {
                self.theirs = Some(hello);
                self.greeted();
            }
            Err(parting) => self.part(parting),
        }
    }

    fn greeted(&mut self) {
        let (Some(theirs), Some(measured)) = (&self.theirs, self.measured) else {
            return;
        };
        if matches!(self.gate, Gate::Parting(_) | Gate::Closed) {
            return;
        }
        let event = FromHandler::Greeted(theirs.clone(), measured);
        self.tell(event);
        self.gate = Gate::Open;
        for (protocol, stream) in std::mem::take(&mut self.early) {
            self.hand_out(protocol, stream);
        }
    }

    /// The first reason counts; what follows it is only the same end seen again.
    fn part(&mut self, parting: Parting) {
        if matches!(self.gate, Gate::Parting(_) | Gate::Closed) {
            return;
        }
        self.early.clear();
        if let Some(offence) = parting.offence {
            self.tell(FromHandler::Offended(offence));
        }
        self.tell(FromHandler::Parted(parting.why));
        self.gate = Gate::Parting(parting.linger.unwrap_or_else(|| ready(()).boxed()));
    }

    /// Moves on what only time or the peer moves.
    fn poll_gate(&mut self, cx: &mut Context<'_>) -> bool {
        let moved = match &mut self.gate {
            Gate::Waiting(deadline) => deadline.poll_unpin(cx).is_ready(),
            Gate::Parting(linger) => linger.poll_unpin(cx).is_ready(),
            Gate::Open | Gate::Closed => false,
        };
        match self.gate {
            Gate::Waiting(_) if moved => self.part(Parting::over(HelloMismatch::NoHello)),
            Gate::Parting(_) if moved => {
                self.gate = Gate::Closed;
                self.tell(FromHandler::Close);
            }
            _ => {}
        }
        moved
    }

    fn on_failed(&mut self, purpose: Purpose, error: StreamUpgradeError<std::convert::Infallible>) {
        let refused = matches!(error, StreamUpgradeError::NegotiationFailed);
        match purpose {
            Purpose::Hello if refused => self.part(Parting::over(HelloMismatch::NotSubstrate)),
            Purpose::Hello => self.part(Parting::over(HelloMismatch::NoHello)),
            Purpose::Open(reply) => {
                let error = if refused {
                    OpenError::NotSpoken
                } else {
                    OpenError::Lost
                };
                // The asker may have given up: then nobody needs the answer.
                let _ = reply.send(Err(error));
            }
        }
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = ToHandler;
    type ToBehaviour = FromHandler;
    type InboundProtocol = Offered;
    type OutboundProtocol = Offered;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = Purpose;

    fn listen_protocol(&self) -> SubstreamProtocol<Offered> {
        let mut names = vec![HELLO];
        if !self.ours.hello.is_joiner() {
            names.push(self.ours.names.stream(Protocol::Job));
            names.push(self.ours.names.stream(Protocol::Sync));
        }
        if self.ours.joins_open {
            names.push(self.ours.names.stream(Protocol::Join));
        }
        SubstreamProtocol::new(Offered(names), ())
    }

    fn connection_keep_alive(&self) -> bool {
        self.keep
    }

    fn on_behaviour_event(&mut self, event: ToHandler) {
        match event {
            ToHandler::Open(protocol, reply) => {
                self.request(self.ours.names.stream(protocol), Purpose::Open(reply));
            }
            ToHandler::Greet(ours) => {
                self.ours = ours;
                self.request(HELLO, Purpose::Hello);
            }
            ToHandler::Keep(keep) => self.keep = keep,
        }
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<'_, Offered, Offered, (), Purpose>) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol: (stream, name),
                ..
            }) => self.on_inbound(stream, &name),
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol: stream,
                info,
            }) => {
                let stream = MeshStream::new(stream, None);
                match info {
                    Purpose::Hello => {
                        self.asking = Some(exchange::ask(stream, Arc::clone(&self.ours)).boxed());
                    }
                    Purpose::Open(reply) => drop(reply.send(Ok(stream))),
                }
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { info, error }) => {
                self.on_failed(info, error);
            }
            _ => {}
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Poll::Ready(event);
            }
            if let Some(Poll::Ready(outcome)) =
                self.asking.as_mut().map(|asking| asking.poll_unpin(cx))
            {
                self.asking = None;
                self.on_measured(outcome);
                continue;
            }
            if let Poll::Ready(Some(outcome)) = self.answering.poll_next_unpin(cx) {
                self.on_introduced(outcome);
                continue;
            }
            if self.poll_gate(cx) {
                continue;
            }
            return Poll::Pending;
        }
    }
}
