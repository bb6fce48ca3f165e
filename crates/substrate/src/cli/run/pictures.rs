//! Paths of images in a prompt, as Ollama's command line reads them: a path that is there is shown instead of told.
//!
//! Invariant: only what a person typed is looked through, never what was piped in; a path that is no image file stays text.
//! Absent by design: a look inside. The daemon says what it cannot use.

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::PathBuf;

use substrate_api::v1;
use substrate_sandbox::wire::image::MAX_IMAGE;

use crate::cli::story::Story;

/// How a path begins that is meant as one.
const BEGINNINGS: [&str; 4] = ["/", "./", "../", "~/"];

/// How it ends.
const ENDS: [&str; 4] = [".png", ".jpg", ".jpeg", ".gif"];

/// What may stand around a path in a sentence.
const AROUND: [char; 11] = ['"', '\'', '(', ')', ',', ';', ':', '?', '!', '<', '>'];

/// A turn of the user's, its first `typed` bytes looked through for images.
///
/// # Errors
/// A file is there and cannot be read, or is too large.
pub fn shown(mut text: String, typed: usize) -> anyhow::Result<v1::Message> {
    let mut images = Vec::new();
    let found = paths(text.get(..typed).unwrap_or_default());
    for (place, path) in found.into_iter().rev() {
        let Some(data) = read(&path)? else { continue };
        images.push((place.start, place.len(), data));
        text.replace_range(place, "");
    }
    // Found from the end on, so that places before were still true; what was taken out before a place moves it.
    let mut taken = 0;
    let images = images.into_iter().rev().map(|(start, length, data)| {
        let at = u32::try_from(start - taken).unwrap_or(u32::MAX);
        taken += length;
        v1::Image { at, data }
    });
    Ok(v1::Message {
        role: "user".to_owned(),
        images: images.collect(),
        content: text,
        ..Default::default()
    })
}

/// Whether a text names images by paths.
pub fn are_named(text: &str) -> bool {
    !paths(text).is_empty()
}

/// Words that look like paths of images, and where they stand.
fn paths(text: &str) -> Vec<(Range<usize>, PathBuf)> {
    let words = text.split_whitespace().filter_map(|word| {
        let word = word.trim_matches(AROUND).trim_end_matches('.');
        let lower = word.to_ascii_lowercase();
        let begins = BEGINNINGS.iter().any(|begin| word.starts_with(begin));
        let ends = ENDS.iter().any(|end| lower.ends_with(end));
        let start = word.as_ptr() as usize - text.as_ptr() as usize;
        (begins && ends).then(|| (start..start + word.len(), at_home(word)))
    });
    words.collect()
}

fn at_home(word: &str) -> PathBuf {
    match (word.strip_prefix("~/"), std::env::home_dir()) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => PathBuf::from(word),
    }
}

/// The bytes of a file, if there is one.
fn read(path: &PathBuf) -> anyhow::Result<Option<Vec<u8>>> {
    if !path.is_file() {
        return Ok(None);
    }
    let cannot = |error: std::io::Error| {
        Story::new(format!("cannot read the image {}", path.display())).because(error)
    };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(cannot)?;
    file.take(MAX_IMAGE as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(cannot)?;
    if bytes.len() > MAX_IMAGE {
        return Err(
            Story::new(format!("the image {} is larger than 6 MiB", path.display()))
                .hint("make it smaller: models scale images down anyway")
                .into(),
        );
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_is_there_becomes_an_image_at_its_place() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let place = |name: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, name).expect("it writes");
            path.display().to_string()
        };
        let (first, second) = (place("a.PNG"), place("b.jpg"));
        let typed = format!("What is in {first}, and in '{second}'? Not /no/such.png");
        let piped = format!("{typed}\n\n{first}");
        let turn = shown(piped, typed.len()).expect("they read");
        let rest = format!("What is in , and in ''? Not /no/such.png\n\n{first}");
        assert_eq!(turn.content, rest);
        let told: Vec<_> = (turn.images.iter())
            .map(|image| (image.at as usize, image.data.as_slice()))
            .collect();
        assert_eq!(told, [(11, &b"a.PNG"[..]), (21, &b"b.jpg"[..])]);
    }

    #[test]
    fn words_that_only_look_like_images_stay() {
        for text in [
            "see a.png",
            "rename x/y.gif",
            "/etc/passwd",
            "./.png is short",
        ] {
            let turn = shown(text.to_owned(), text.len()).expect("nothing is read");
            assert_eq!((turn.content.as_str(), turn.images.len()), (text, 0));
        }
    }
}
