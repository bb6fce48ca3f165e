//! `POST /v1/files`: a form whose file is written to disk as it comes.
//!
//! Invariants: of the file no more is in memory than the piece at hand; of an upload that is refused, or breaks off,
//! nothing is left.

use std::time::Duration;

use axum::body::BodyDataStream;
use axum::extract::Request;
use axum::http::header;
use axum::{Extension, Json};
use futures::StreamExt;

use super::{File, on_disk, purpose};
use crate::batches::Batches;
use crate::grpc::desk::now_ms;
use crate::http::body::linger;
use crate::http::error::{OpenAiError, Refusal, clipped};
use crate::http::guard::Caller;
use crate::http::multipart::{Decoder, FormError, Piece};
use crate::kept::{FILE_BYTES, KeptWriter, NAME_BYTES, Purpose, expiry};

/// How long an upload may take: the largest file at a modest 2 Mbit/s.
const UPLOAD_PATIENCE: Duration = Duration::from_secs(900);

/// Longest value of a field that is not the file.
const MAX_VALUE: usize = 1 << 10;

/// What is around the file in a form, at most.
const AROUND: u64 = 64 << 10;

/// What a form says so far.
#[derive(Default)]
struct Form {
    file: Option<KeptWriter>,
    filename: String,
    purpose: Option<Purpose>,
    anchor: Option<String>,
    seconds: Option<i64>,
    /// The field at hand, and its value if it is not the file.
    field: Option<(String, Vec<u8>)>,
}

pub(in crate::http::openai) async fn upload(
    Extension(batches): Extension<Batches>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Json<File>, OpenAiError> {
    let (head, body) = request.into_parts();
    let text = |name| head.headers.get(name)?.to_str().ok();
    let kind = text(header::CONTENT_TYPE).unwrap_or_default();
    let decoder = Decoder::new(kind).map_err(Refusal::from)?;
    let mut arriving = body.into_data_stream();
    let declared = text(header::CONTENT_LENGTH).and_then(|length| length.parse().ok());
    if declared.unwrap_or(0) > FILE_BYTES + AROUND {
        if !head.headers.contains_key(header::EXPECT) {
            linger(arriving);
        }
        let why = format!("a file may have at most {FILE_BYTES} bytes");
        return Err(Refusal::too_large_file(why).into());
    }
    let taken = take(decoder, &mut arriving, &batches, &caller);
    let taken = match tokio::time::timeout(UPLOAD_PATIENCE, taken).await {
        Ok(taken) => taken,
        Err(_) => Err(Refusal::too_slow()),
    };
    let form = match taken {
        Ok(form) => form,
        Err(refusal) => {
            linger(arriving);
            return Err(refusal.into());
        }
    };
    Ok(Json(form.keep().await?))
}

async fn take(
    mut decoder: Decoder,
    arriving: &mut BodyDataStream,
    batches: &Batches,
    caller: &Caller,
) -> Result<Form, Refusal> {
    let mut form = Form::default();
    while let Some(bytes) = arriving.next().await {
        let bytes = bytes.map_err(|_| Refusal::unreadable("the request body broke off"))?;
        for piece in decoder.push(&bytes)? {
            form = form.take(piece, batches, caller).await?;
        }
    }
    decoder.finish()?;
    Ok(form)
}

impl Form {
    async fn take(
        mut self,
        piece: Piece,
        batches: &Batches,
        caller: &Caller,
    ) -> Result<Self, Refusal> {
        match piece {
            Piece::Field { name, filename } => {
                if name == "file" {
                    self.begin_file(filename, batches, caller).await?;
                }
                self.field = Some((name, Vec::new()));
            }
            Piece::Bytes(bytes) => match &mut self.field {
                Some((name, _)) if name == "file" => self.append(bytes).await?,
                Some((name, value)) => {
                    value.extend(bytes);
                    if value.len() > MAX_VALUE {
                        let why = format!("{} is longer than {MAX_VALUE} bytes", clipped(name));
                        return Err(Refusal::invalid(clipped(name), why));
                    }
                }
                None => {}
            },
            Piece::End => self.end_field()?,
        }
        Ok(self)
    }

    async fn begin_file(
        &mut self,
        filename: Option<String>,
        batches: &Batches,
        caller: &Caller,
    ) -> Result<(), Refusal> {
        if self.file.is_some() {
            return Err(Refusal::invalid("file", "the form has more than one file"));
        }
        let name = filename.unwrap_or_default();
        if name.len() > NAME_BYTES {
            let why = format!("the file's name is longer than {NAME_BYTES} bytes");
            return Err(Refusal::invalid("file", why));
        }
        self.filename = name.chars().filter(|letter| !letter.is_control()).collect();
        let (batches, client) = (batches.clone(), caller.client.clone());
        let begun = on_disk(move || Ok(batches.kept().writer(&client, now_ms())?));
        self.file = Some(begun.await?);
        Ok(())
    }

    async fn append(&mut self, bytes: Vec<u8>) -> Result<(), Refusal> {
        let Some(mut file) = self.file.take() else {
            return Ok(());
        };
        let written = on_disk(move || {
            file.append(&bytes)?;
            Ok(file)
        });
        self.file = Some(written.await?);
        Ok(())
    }

    fn end_field(&mut self) -> Result<(), Refusal> {
        let Some((name, value)) = self.field.take() else {
            return Ok(());
        };
        if name == "file" {
            return Ok(());
        }
        let value = String::from_utf8(value)
            .map_err(|_| Refusal::invalid(clipped(&name), "the value is not text in UTF-8"))?;
        match name.as_str() {
            "purpose" => self.purpose = Some(purpose(&value)?),
            "expires_after[anchor]" => self.anchor = Some(value),
            "expires_after[seconds]" => {
                let seconds = value.trim().parse().map_err(|_| {
                    Refusal::invalid("expires_after.seconds", "seconds must be a whole number")
                })?;
                self.seconds = Some(seconds);
            }
            // As unknown fields in JSON.
            _ => {}
        }
        Ok(())
    }

    async fn keep(self) -> Result<File, Refusal> {
        let file = self
            .file
            .ok_or_else(|| Refusal::invalid("file", "the form has no file"))?;
        let purpose = self.purpose.ok_or_else(|| {
            Refusal::invalid("purpose", "purpose is required: batch or user_data")
        })?;
        let expires_ms = match (self.anchor.as_deref(), self.seconds) {
            (None, None) => None,
            (Some("created_at"), Some(seconds)) => Some(
                expiry(now_ms(), seconds)
                    .map_err(|why| Refusal::invalid("expires_after.seconds", why))?,
            ),
            _ => {
                let why = "expires_after needs the anchor created_at and seconds";
                return Err(Refusal::invalid("expires_after", why));
            }
        };
        let filename = self.filename;
        let kept = on_disk(move || Ok(file.commit(filename, purpose, expires_ms)?));
        Ok(kept.await?.into())
    }
}

impl From<FormError> for Refusal {
    fn from(error: FormError) -> Self {
        Self::unreadable(error.to_string())
    }
}
