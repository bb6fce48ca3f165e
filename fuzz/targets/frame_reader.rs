//! A stream of frames: no input panics, how the bytes were cut into reads changes nothing, and the
//! frames are written again as the bytes they were read from.
#![no_main]

use std::pin::Pin;
use std::task::{Context, Poll};

use libfuzzer_sys::fuzz_target;
use substrate_fuzz::entries::EntriesFrame;
use substrate_fuzz::frame::{Frame, FrameReader, FrameWriter, ReadError};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::runtime::{Builder, Runtime};

/// Reads in the second pass, about: short inputs come byte by byte, long ones are not read all day.
const READS: usize = 64;

thread_local! {
    /// Readers have deadlines, so they need a clock.
    static RUNTIME: Runtime = Builder::new_current_thread().enable_time().build().expect("runtime");
}

fuzz_target!(|bytes: &[u8]| RUNTIME.with(|runtime| runtime.block_on(check(bytes))));

async fn check(bytes: &[u8]) {
    let (frames, end) = read::<EntriesFrame>(Pieces(bytes, usize::MAX)).await;
    let piece = bytes.len() / READS + 1;
    let (same_frames, same_end) = read::<EntriesFrame>(Pieces(bytes, piece)).await;
    assert!(frames == same_frames);
    assert_eq!(end.to_string(), same_end.to_string());

    let mut written = Vec::new();
    let mut writer = FrameWriter::new(&mut written);
    for frame in &frames {
        writer
            .send(frame)
            .await
            .expect("what was read can be written");
    }
    assert!(bytes.starts_with(&written));
    assert!(written.len() == bytes.len() || !matches!(end, ReadError::Ended));
}

/// The frames in the bytes, and why there are no more.
async fn read<F: Frame>(stream: Pieces<'_>) -> (Vec<F>, ReadError) {
    let mut reader = FrameReader::new(stream);
    let mut frames = Vec::new();
    loop {
        match reader.next().await {
            Ok(frame) => frames.push(frame),
            Err(end) => return (frames, end),
        }
    }
}

/// Bytes, and how many of them a read gives at most.
struct Pieces<'a>(&'a [u8], usize);

impl AsyncRead for Pieces<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let size = self.0.len().min(self.1).min(buffer.remaining());
        let (piece, rest) = self.0.split_at(size);
        buffer.put_slice(piece);
        self.0 = rest;
        Poll::Ready(Ok(()))
    }
}
