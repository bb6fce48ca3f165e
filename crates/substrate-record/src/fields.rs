//! How the fields of a record become CBOR and come back: one line per field, used both ways.
//!
//! Invariant: a struct is a map of unsigned labels, ascending; an absent option is an absent
//! label; a label nobody defined is refused; every text, byte string and list names its bound.
//!
//! Absent by design: defaults for missing fields, and any form a field could take twice.

use ciborium::Value;

use crate::error::{FieldError, FieldFault};

/// A value with exactly one CBOR form and no bound of its own to state.
pub(crate) trait Cbor: Sized {
    fn put(&self) -> Value;
    fn get(value: Value) -> Result<Self, FieldError>;
}

/// How one field is written and read; `None` is an absent label.
pub(crate) trait Codec<T> {
    fn put(&self, field: &T) -> Option<Value>;
    fn get(&self, value: Option<Value>) -> Result<T, FieldError>;
}

/// A field whose type says everything.
pub(crate) struct Plain;
/// Text of at most so many bytes.
pub(crate) struct Text(pub(crate) usize);
/// A byte string of at most so many bytes.
pub(crate) struct Blob(pub(crate) usize);
/// At most so many items.
pub(crate) struct List<C = Plain>(pub(crate) usize, pub(crate) C);
/// A field that may be absent.
pub(crate) struct Maybe<C>(pub(crate) C);

impl<T: Cbor> Codec<T> for Plain {
    fn put(&self, field: &T) -> Option<Value> {
        Some(field.put())
    }

    fn get(&self, value: Option<Value>) -> Result<T, FieldError> {
        T::get(value.ok_or(FieldFault::Missing)?)
    }
}

impl Codec<String> for Text {
    fn put(&self, field: &String) -> Option<Value> {
        Some(Value::Text(field.clone()))
    }

    fn get(&self, value: Option<Value>) -> Result<String, FieldError> {
        match value.ok_or(FieldFault::Missing)? {
            Value::Text(text) if text.len() <= self.0 => Ok(text),
            Value::Text(_) => Err(FieldFault::TooLong { limit: self.0 }.into()),
            _ => Err(FieldFault::WrongType("text").into()),
        }
    }
}

impl Codec<Vec<u8>> for Blob {
    fn put(&self, field: &Vec<u8>) -> Option<Value> {
        Some(Value::Bytes(field.clone()))
    }

    fn get(&self, value: Option<Value>) -> Result<Vec<u8>, FieldError> {
        match value.ok_or(FieldFault::Missing)? {
            Value::Bytes(bytes) if bytes.len() <= self.0 => Ok(bytes),
            Value::Bytes(_) => Err(FieldFault::TooLong { limit: self.0 }.into()),
            _ => Err(FieldFault::WrongType("bytes").into()),
        }
    }
}

impl<T, C: Codec<T>> Codec<Vec<T>> for List<C> {
    fn put(&self, field: &Vec<T>) -> Option<Value> {
        let items = field.iter().filter_map(|item| self.1.put(item));
        Some(Value::Array(items.collect()))
    }

    fn get(&self, value: Option<Value>) -> Result<Vec<T>, FieldError> {
        match value.ok_or(FieldFault::Missing)? {
            Value::Array(items) if items.len() <= self.0 => items
                .into_iter()
                .map(|item| self.1.get(Some(item)))
                .collect(),
            Value::Array(_) => Err(FieldFault::TooMany { limit: self.0 }.into()),
            _ => Err(FieldFault::WrongType("an array").into()),
        }
    }
}

impl<T, C: Codec<T>> Codec<Option<T>> for Maybe<C> {
    fn put(&self, field: &Option<T>) -> Option<Value> {
        field.as_ref().and_then(|field| self.0.put(field))
    }

    fn get(&self, value: Option<Value>) -> Result<Option<T>, FieldError> {
        value.map(|value| self.0.get(Some(value))).transpose()
    }
}

/// Collects a struct's fields; labels are put in ascending order.
#[derive(Default)]
pub(crate) struct MapWriter(Vec<(Value, Value)>);

impl MapWriter {
    pub(crate) fn put<T>(&mut self, label: u64, codec: &impl Codec<T>, field: &T) {
        if let Some(value) = codec.put(field) {
            self.0.push((Value::from(label), value));
        }
    }

    pub(crate) fn finish(self) -> Value {
        Value::Map(self.0)
    }
}

/// Hands out a struct's fields; what is left at the end was not asked for.
pub(crate) struct MapReader(std::collections::BTreeMap<u64, Value>);

impl MapReader {
    pub(crate) fn open(value: Value) -> Result<Self, FieldError> {
        let Value::Map(pairs) = value else {
            return Err(FieldFault::WrongType("a map").into());
        };
        let labelled = pairs.into_iter().map(|(label, value)| {
            let label = label
                .as_integer()
                .and_then(|label| u64::try_from(label).ok());
            Ok((label.ok_or(FieldFault::NotALabel)?, value))
        });
        labelled.collect::<Result<_, FieldError>>().map(Self)
    }

    pub(crate) fn take<T>(
        &mut self,
        label: u64,
        name: &'static str,
        codec: &impl Codec<T>,
    ) -> Result<T, FieldError> {
        let value = self.0.remove(&label);
        codec.get(value).map_err(|error| error.within(name))
    }

    pub(crate) fn close(self) -> Result<(), FieldError> {
        match self.0.into_keys().next() {
            Some(label) => Err(FieldFault::UnknownLabel(label).into()),
            None => Ok(()),
        }
    }
}

/// Defines a struct's CBOR map: `label => field: codec`, labels ascending.
macro_rules! cbor_map {
    ($name:ident { $($label:literal => $field:ident: $codec:expr),+ $(,)? }) => {
        impl $crate::fields::Cbor for $name {
            fn put(&self) -> ciborium::Value {
                let mut map = $crate::fields::MapWriter::default();
                $(map.put($label, &$codec, &self.$field);)+
                map.finish()
            }

            fn get(value: ciborium::Value) -> Result<Self, $crate::error::FieldError> {
                let mut map = $crate::fields::MapReader::open(value)?;
                let whole = Self { $($field: map.take($label, stringify!($field), &$codec)?),+ };
                map.close()?;
                Ok(whole)
            }
        }
    };
}

/// Makes an enum with explicit codes an unsigned integer on the wire.
macro_rules! cbor_codes {
    ($name:ident { $($variant:ident),+ $(,)? }) => {
        impl $crate::fields::Cbor for $name {
            fn put(&self) -> ciborium::Value {
                ciborium::Value::from(*self as u64)
            }

            fn get(value: ciborium::Value) -> Result<Self, $crate::error::FieldError> {
                match u64::get(value)? {
                    $(code if code == $name::$variant as u64 => Ok($name::$variant),)+
                    _ => Err($crate::error::FieldFault::OutOfRange.into()),
                }
            }
        }
    };
}

/// Makes a struct with a CBOR map the body of a record.
macro_rules! body {
    ($name:ident, $stream:expr) => {
        impl $crate::envelope::Body for $name {
            const TYPE: $crate::RecordType = $crate::RecordType::$name;
            const STREAM: Option<$crate::Stream> = $stream;

            fn to_cbor(&self) -> ciborium::Value {
                $crate::fields::Cbor::put(self)
            }

            fn from_cbor(value: ciborium::Value) -> Result<Self, $crate::DecodeError> {
                let body = <Self as $crate::fields::Cbor>::get(value)
                    .map_err(|error| error.within(stringify!($name)))?;
                body.consistent()
                    .map_err(|error| error.within(stringify!($name)))?;
                Ok(body)
            }
        }
    };
}

pub(crate) use {body, cbor_codes, cbor_map};

macro_rules! integer {
    ($($int:ty),+) => {$(
        impl Cbor for $int {
            fn put(&self) -> Value {
                Value::from(*self)
            }

            fn get(value: Value) -> Result<Self, FieldError> {
                let integer = value.as_integer().ok_or(FieldFault::WrongType("an integer"))?;
                Self::try_from(integer).map_err(|_| FieldFault::OutOfRange.into())
            }
        }
    )+};
}
integer!(u32, u64, i32, i64);

impl Cbor for bool {
    fn put(&self) -> Value {
        Value::Bool(*self)
    }

    fn get(value: Value) -> Result<Self, FieldError> {
        value
            .as_bool()
            .ok_or_else(|| FieldFault::WrongType("true or false").into())
    }
}
