//! What a model that was made here adds to a job before it is submitted (docs/decisions/0013).
//!
//! Invariant: nothing that the request said itself is changed, and no word of it left out.
//! Absent by design: names of such models anywhere but on this machine. The job goes out under the entry of the weights.

use substrate_sandbox::wire::input::{Message, Prompt};

use crate::door::Ask;
use crate::models::parameters::Setting;
use crate::models::recipe::{Recipe, Turn};

/// The role of what a model is told first.
const SYSTEM: &str = "system";

/// Completes a request by the recipe of the model it asks.
pub fn fill(ask: &mut Ask, recipe: &Recipe) {
    if let Prompt::Texts { .. } = ask.input.prompt {
        return;
    }
    let parameters = &recipe.parameters;
    parameters.fill_sampler(&mut ask.sampler, &ask.said);
    let said = |setting| ask.said.contains(&setting);
    if !said(Setting::Seed) {
        ask.seed = parameters.seed();
    }
    if !said(Setting::NumPredict) {
        ask.max_tokens = parameters.max_tokens();
    }
    if !said(Setting::Stop) {
        ask.input.stop = parameters.stop().to_vec();
    }
    if let Prompt::Chat(messages) = &mut ask.input.prompt {
        begin(messages, recipe);
        let said = ask.input.template.take();
        ask.input.template = said.or_else(|| recipe.template.clone());
    }
}

/// The system's text first, the request's or else the recipe's; then the recipe's turns; then the request's.
///
/// Templates know a system's turn at the beginning only, so that the recipe's turns go behind the request's.
fn begin(messages: &mut Vec<Message>, recipe: &Recipe) {
    let told = messages.first().is_some_and(|first| first.role == SYSTEM);
    let own = recipe
        .system
        .as_ref()
        .filter(|text| !told && !text.is_empty());
    let turn = |turn: &Turn| Message::new(&*turn.role, &*turn.content);
    let behind = usize::from(told);
    messages.splice(behind..behind, recipe.messages.iter().map(turn));
    if let Some(text) = own {
        messages.insert(0, Message::new(SYSTEM, &**text));
    }
}

#[cfg(test)]
mod tests {
    use substrate_sandbox::wire::input::Input;

    use super::*;
    use crate::door::{Client, Placement};
    use crate::http::embed::NOTHING_DRAWN;
    use crate::models::parameters::Said;

    fn pirate() -> Recipe {
        let mut recipe = Recipe {
            system: Some("Be a pirate.".into()),
            template: Some("{{ messages }}".into()),
            messages: vec![Turn {
                role: "user".into(),
                content: "hi".into(),
            }],
            ..Recipe::default()
        };
        for (name, value) in [
            ("temperature", "0.5"),
            ("seed", "7"),
            ("num_predict", "9"),
            ("stop", "x"),
        ] {
            recipe.parameters.set(name, value).unwrap();
        }
        recipe
    }

    fn ask(input: Input, said: Said) -> Ask {
        Ask {
            model: "pirate".into(),
            input,
            sampler: NOTHING_DRAWN,
            said,
            seed: Some(1),
            choice: 0,
            max_tokens: Some(2),
            scope: None,
            placement: Placement::Any,
            wall: None,
            isolated: false,
            deadline_ms: 1,
            client: Client::Owner,
            patient: false,
        }
    }

    fn filled(input: Input, said: Said) -> Ask {
        let mut ask = ask(input, said);
        fill(&mut ask, &pirate());
        ask
    }

    fn turns(ask: &Ask) -> Vec<String> {
        let Prompt::Chat(messages) = &ask.input.prompt else {
            return Vec::new();
        };
        let told = messages.iter();
        told.map(|message| format!("{}: {}", message.role, message.content))
            .collect()
    }

    #[test]
    fn what_a_request_leaves_open_is_the_recipes() {
        let ask = filled(
            Input::chat(vec![Message::new("user", "Ahoy?")]),
            Said::new(),
        );
        assert_eq!(
            turns(&ask),
            ["system: Be a pirate.", "user: hi", "user: Ahoy?"]
        );
        assert_eq!(
            (ask.sampler.temperature, ask.seed, ask.max_tokens),
            (500_000, Some(7), Some(9))
        );
        assert_eq!(ask.input.stop, ["x"]);
        assert_eq!(ask.input.template.as_deref(), Some("{{ messages }}"));
    }

    #[test]
    fn what_a_request_says_is_left_as_it_is() {
        let messages = vec![
            Message::new("system", "Be plain."),
            Message::new("user", "Ahoy?"),
        ];
        let ask = filled(Input::chat(messages), Said::from(Setting::ALL));
        assert_eq!(
            turns(&ask),
            ["system: Be plain.", "user: hi", "user: Ahoy?"]
        );
        assert_eq!(
            (ask.sampler, ask.seed, ask.max_tokens),
            (NOTHING_DRAWN, Some(1), Some(2))
        );
        assert!(ask.input.stop.is_empty());
    }

    #[test]
    fn plain_text_gets_parameters_only_and_texts_get_nothing() {
        let text = filled(Input::text("Ahoy", false), Said::new());
        assert_eq!(text.max_tokens, Some(9));
        assert!(text.input.template.is_none());
        let texts = filled(Input::texts(vec!["Ahoy".into()], true), Said::new());
        assert!(texts.input.to_cbor_bytes().is_ok());
        assert_eq!(texts.seed, Some(1));
    }
}
