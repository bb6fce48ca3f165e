//! Lists of small local values: JSON below a key prefix, read within a bound.

use std::ops::Bound;

use redb::{ReadableTable, Table};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::StoreError;
use super::tables::after;

/// One value, if it is there.
pub(crate) fn get<T: DeserializeOwned>(
    table: &impl ReadableTable<&'static [u8], &'static [u8]>,
    key: &[u8],
) -> Result<Option<T>, StoreError> {
    table
        .get(key)?
        .map(|value| parse(value.value()))
        .transpose()
}

/// Stores one value.
pub(crate) fn put<T: Serialize>(
    table: &mut Table<'_, &'static [u8], &'static [u8]>,
    key: &[u8],
    value: &T,
) -> Result<(), StoreError> {
    let bytes = serde_json::to_vec(value).map_err(|error| StoreError::Corrupt {
        detail: error.to_string(),
    })?;
    table.insert(key, bytes.as_slice())?;
    Ok(())
}

/// At most `limit` values below a prefix, each with the rest of its key.
pub(crate) fn below<T: DeserializeOwned>(
    table: &impl ReadableTable<&'static [u8], &'static [u8]>,
    prefix: &[u8],
    limit: usize,
) -> Result<Vec<(Vec<u8>, T)>, StoreError> {
    keys_below(table, prefix, limit, |rest, value| {
        Ok((rest.to_vec(), parse(value)?))
    })
}

/// Reads at most `limit` rows below a prefix.
pub(crate) fn keys_below<T>(
    table: &impl ReadableTable<&'static [u8], &'static [u8]>,
    prefix: &[u8],
    limit: usize,
    mut read: impl FnMut(&[u8], &[u8]) -> Result<T, StoreError>,
) -> Result<Vec<T>, StoreError> {
    let end = after(prefix);
    let upper = end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
    let mut found = Vec::new();
    for row in table
        .range::<&[u8]>((Bound::Included(prefix), upper))?
        .take(limit)
    {
        let (key, value) = row?;
        found.push(read(&key.value()[prefix.len()..], value.value())?);
    }
    Ok(found)
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(bytes).map_err(|error| StoreError::Corrupt {
        detail: format!("a local list: {error}"),
    })
}
