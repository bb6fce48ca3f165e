//! A Modelfile somebody passed on: no text panics, what is read is within its bounds, and it is read again from what is
//! written, unless one of its texts holds three quotes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use substrate_fuzz::modelfile::{Modelfile, write};
use substrate_fuzz::recipe::{MAX_RECIPE, MAX_TURNS, Recipe};

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let Ok(read) = Modelfile::parse(text) else {
        return;
    };
    let recipe = read.recipe;
    assert!(recipe.check().is_ok() && !recipe.from.is_empty());
    assert!(recipe.messages.len() <= MAX_TURNS);
    let written = write(&recipe, &recipe.from, None);
    assert!(written.len() <= 2 * MAX_RECIPE);
    if texts(&recipe).any(|text| text.contains("\"\"\"")) {
        return;
    }
    let again = Modelfile::parse(&written).expect("what is written can be read");
    assert!(again.recipe == recipe && again.warnings.is_empty());
});

fn texts(recipe: &Recipe) -> impl Iterator<Item = &str> {
    let said = recipe.messages.iter().map(|turn| turn.content.as_str());
    let stops = recipe.parameters.stop().iter().map(String::as_str);
    let licences = recipe.licences.iter().map(String::as_str);
    let one = recipe.system.iter().chain(&recipe.template);
    let one = one.map(String::as_str).chain([recipe.from.as_str()]);
    said.chain(stops).chain(licences).chain(one)
}
