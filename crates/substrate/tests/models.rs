//! Models as people use them: imported, found, copied, removed, refused, carried into another network.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use substrate::blobs::{Blobs, How};
use substrate::home::Home;
use substrate::keys::{DeviceKey, RegistryKey, genesis_of_network, genesis_of_one};
use substrate::models::catalogue::{Catalogue, FindError, Held};
use substrate::models::create::{Adapter, Base, CreateError, Order};
use substrate::models::import::{
    ImportError, Importer, Inspect, InspectError, ModelFacts, More, Signer,
};
use substrate::models::modelfile::Modelfile;
use substrate::models::names::ModelName;
use substrate::store::Store;
use substrate_record::{
    AnyRecord, ContentHash, Genesis, ModelEntry, NetworkId, NodeId, Record, SigningKey, Stream,
    Verified,
};

/// Stands for the worker: believes a first line of the form `GGUF arch size`.
struct FirstLine;

impl Inspect for FirstLine {
    fn inspect(&self, model: &Path) -> Result<ModelFacts, InspectError> {
        let text = std::fs::read_to_string(model).unwrap_or_default();
        let mut words = text.lines().next().unwrap_or_default().split(' ');
        match (
            words.next(),
            words.next(),
            words.next().and_then(|size| size.parse().ok()),
        ) {
            (Some("GGUF"), Some(arch), Some(size)) => Ok(ModelFacts {
                arch: arch.into(),
                quant: "Q4_1".into(),
                n_ctx_train: 8192,
                n_params: 135_000_000,
                size,
                licence: Some("apache-2.0".into()),
                template: Some("{{ messages }}".into()),
                is_adapter: words.next() == Some("adapter"),
                ..ModelFacts::default()
            }),
            (Some("later"), ..) => Err(InspectError::Unavailable("no worker".into())),
            _ => Err(InspectError::BadModel("no GGUF magic".into())),
        }
    }
}

struct Machine {
    folder: tempfile::TempDir,
    home: Home,
    device: Arc<DeviceKey>,
    store: Store,
    network: NetworkId,
}

impl Machine {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::at(folder.path().join("home"));
        home.prepare().unwrap();
        let device = Arc::new(DeviceKey::open_or_create(&home).unwrap());
        let store = Store::open(&home.store()).unwrap();
        let genesis = genesis_of_one(&device, "alone");
        store.add_network(&genesis).unwrap();
        Self {
            folder,
            home,
            device,
            store,
            network: genesis.network(),
        }
    }

    fn catalogue(&self) -> Catalogue {
        Catalogue::new(self.store.clone(), self.network)
    }

    fn blobs(&self) -> Blobs {
        Blobs::open(&self.home.blobs()).unwrap()
    }

    fn importer(&self) -> Importer {
        Importer::new(self.blobs(), self.catalogue(), Arc::new(FirstLine))
    }

    fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    fn import(
        &self,
        file: &Path,
        name: &str,
    ) -> Result<substrate::models::import::ImportReport, ImportError> {
        let signer = Signer::Device(self.device.clone());
        self.importer().import(
            file,
            &named(name),
            vec!["hf:a/b".into()],
            &signer,
            7,
            &mut |_, _| {},
        )
    }

    /// Makes a model of a Modelfile without its first line.
    fn create(&self, name: &str, base: Base, lines: &str) -> Result<Held, CreateError> {
        self.create_with(name, base, None, lines)
    }

    fn create_with(
        &self,
        name: &str,
        base: Base,
        adapter: Option<Adapter>,
        lines: &str,
    ) -> Result<Held, CreateError> {
        let modelfile = Modelfile::parse(&format!("FROM x\n{lines}")).unwrap();
        let order = Order {
            name: named(name),
            base,
            adapter,
            recipe: modelfile.recipe,
        };
        let signer = Signer::Device(self.device.clone());
        self.importer().create(order, &signer, 8, &mut |_| {})
    }
}

fn named(name: &str) -> ModelName {
    name.parse().unwrap()
}

#[test]
fn an_import_signs_an_entry_and_binds_the_name() {
    let machine = Machine::new();
    let file = machine.file("m.gguf", "GGUF llama 10\nweights");
    let report = machine.import(&file, "smollm2:135m").unwrap();
    let body = report.held.entry.body();
    assert!(!report.adopted && report.how != How::Present);
    assert_eq!(
        (body.name.as_str(), body.arch.as_str(), body.context),
        ("smollm2:135m", "llama", 8192)
    );
    assert_eq!(report.held.entry.author(), machine.device.node());
    assert_eq!(
        body.template_sha256,
        Some(ContentHash::of(b"{{ messages }}"))
    );
    assert!(file.is_file());
    for asked in [
        "smollm2:135m",
        "SMOLLM2:135M",
        &report.held.entry.id().to_string(),
        &report.held.weights().to_string()[..12],
    ] {
        assert_eq!(
            machine.catalogue().find(asked).unwrap().entry.id(),
            report.held.entry.id(),
            "{asked}"
        );
    }
}

#[test]
fn the_same_bytes_have_one_entry() {
    let machine = Machine::new();
    let first = machine
        .import(&machine.file("a.gguf", "GGUF llama 10\nweights"), "one")
        .unwrap();
    let second = machine
        .import(&machine.file("b.gguf", "GGUF llama 10\nweights"), "two")
        .unwrap();
    assert!(second.adopted);
    assert_eq!(second.how, How::Present);
    assert_eq!(second.held.entry.id(), first.held.entry.id());
    assert_eq!(machine.catalogue().list().unwrap().len(), 2);
}

#[test]
fn a_lying_or_truncated_file_is_refused_and_only_our_copy_is_moved() {
    let machine = Machine::new();
    for (name, content, why) in [
        (
            "lies.gguf",
            "GGUF llama 99999\nshort",
            "speaks of 99999 bytes",
        ),
        ("cut.gguf", "GG", "no GGUF magic"),
        ("other.txt", "hello", "no GGUF magic"),
    ] {
        let file = machine.file(name, content);
        let error = machine.import(&file, "bad").unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
        let ImportError::Refused {
            quarantined: Some(quarantined),
            ..
        } = error
        else {
            panic!("not refused")
        };
        assert!(quarantined.is_file());
        assert_eq!(std::fs::read_to_string(&file).unwrap(), content);
    }
    assert!(machine.blobs().list().unwrap().is_empty());
    assert!(matches!(
        machine.catalogue().find("bad"),
        Err(FindError::Unknown { .. })
    ));
}

#[test]
fn without_an_inspection_there_is_no_model_and_no_blame() {
    let machine = Machine::new();
    let error = machine
        .import(&machine.file("a.gguf", "later"), "a")
        .unwrap_err();
    assert!(
        matches!(error, ImportError::Inspect(InspectError::Unavailable(_))),
        "{error}"
    );
    assert!(machine.catalogue().list().unwrap().is_empty());
}

#[test]
fn an_unknown_name_gets_similar_ones() {
    let machine = Machine::new();
    machine
        .import(&machine.file("a.gguf", "GGUF llama 10\na"), "smollm2:135m")
        .unwrap();
    machine
        .import(&machine.file("b.gguf", "GGUF llama 10\nb"), "qwen3")
        .unwrap();
    for typed in ["smolm2", "smollm", "smollm2", "SmolLM2:1.7b"] {
        match machine.catalogue().find(typed) {
            Err(FindError::Unknown { similar, .. }) => {
                assert_eq!(similar, ["smollm2:135m"], "{typed}")
            }
            other => panic!("{typed}: {other:?}"),
        }
    }
    let error = machine.catalogue().find("smolm2").unwrap_err();
    assert_eq!(error.to_string(), "model 'smolm2' not found");
    assert!(matches!(
        machine.catalogue().find("a b"),
        Err(FindError::Name(_))
    ));
}

#[test]
fn a_blob_goes_with_its_last_name() {
    let machine = Machine::new();
    let catalogue = machine.catalogue();
    let digest = machine
        .import(&machine.file("a.gguf", "GGUF llama 10\na"), "one")
        .unwrap()
        .held
        .weights();
    let freed = catalogue.copy("one", &named("two"), 8).unwrap();
    assert!(freed.is_empty(), "no older model had the name");
    assert!(
        catalogue
            .remove(&named("one"))
            .unwrap()
            .unreferenced
            .is_empty()
    );
    let removed = catalogue.remove(&named("two")).unwrap();
    assert_eq!(removed.unreferenced, [digest]);
    assert!(matches!(
        catalogue.remove(&named("two")),
        Err(FindError::Unknown { .. })
    ));
    assert!(
        catalogue
            .records()
            .entry(&removed.held.entry.id())
            .unwrap()
            .is_some(),
        "receipts still point to the entry"
    );
}

#[test]
fn a_registry_key_signs_between_staging_and_finishing() {
    let machine = Machine::new();
    let registry = RegistryKey::generate();
    let genesis = genesis_of_network(&machine.device, &registry, "ours");
    machine.store.add_network(&genesis).unwrap();
    let catalogue = Catalogue::new(machine.store.clone(), genesis.network());
    let importer = Importer::new(machine.blobs(), catalogue.clone(), Arc::new(FirstLine));
    let staged = importer
        .stage(
            &machine.file("m.gguf", "GGUF llama 10\nm"),
            Vec::new(),
            &mut |_, _| {},
        )
        .unwrap();
    let known = importer.known(&staged, &registry.node()).unwrap();
    assert!(known.adopt.is_none() && known.countersign.is_none());
    let place = catalogue
        .records()
        .next_place(&registry.node(), Stream::Registry)
        .unwrap();
    let mut record = Record::new(registry.node(), 1, staged.body.clone());
    record.place = Some(place);
    let entry = record.sign(registry.signing(), &genesis.network()).unwrap();
    let held = importer
        .finish(staged, &named("m"), entry.clone(), None, 9)
        .unwrap();
    assert_eq!(held.entry.author(), registry.node());
    // Another file does not get this entry.
    let other = importer
        .stage(
            &machine.file("n.gguf", "GGUF llama 10\nn"),
            Vec::new(),
            &mut |_, _| {},
        )
        .unwrap();
    assert!(matches!(
        importer.finish(other, &named("n"), entry, None, 9),
        Err(ImportError::OtherEntry)
    ));
}

#[test]
fn an_entry_of_the_registry_is_adopted_before_one_of_a_device() {
    let machine = Machine::new();
    let registry = Arc::new(RegistryKey::generate());
    let genesis = genesis_of_network(&machine.device, &registry, "ours");
    machine.store.add_network(&genesis).unwrap();
    let catalogue = Catalogue::new(machine.store.clone(), genesis.network());
    let importer = Importer::new(machine.blobs(), catalogue, Arc::new(FirstLine));
    let file = machine.file("m.gguf", "GGUF llama 10\nm");
    let import = |signer: Signer, name: &str| {
        importer
            .import(&file, &named(name), Vec::new(), &signer, 1, &mut |_, _| {})
            .unwrap()
    };
    let by_device = import(Signer::Device(machine.device.clone()), "a");
    let by_registry = import(Signer::Registry(registry.clone()), "b");
    assert!(
        !by_registry.adopted,
        "a registry key is used in order to sign"
    );
    let third = import(Signer::Device(machine.device.clone()), "c");
    assert!(third.adopted);
    assert_eq!(third.held.entry.id(), by_registry.held.entry.id());
    assert_ne!(third.held.entry.id(), by_device.held.entry.id());
}

#[test]
fn a_name_that_is_bound_anew_gives_up_the_older_bytes() {
    let machine = Machine::new();
    let import = |content: &str, name: &str| {
        let file = machine.file("a.gguf", content);
        let report = machine.import(&file, name).unwrap();
        report.held.weights()
    };
    let first = import("GGUF llama 10\nfirst", "one");
    let second = import("GGUF llama 10\nsecond", "one");
    let blobs = machine.blobs();
    assert!(!blobs.has(&first) && blobs.has(&second), "a newer import");
    // The same bytes again are not an older model's.
    assert_eq!(import("GGUF llama 10\nsecond", "one"), second);
    assert!(blobs.has(&second));
    // A second name keeps them.
    let catalogue = machine.catalogue();
    assert!(catalogue.copy("one", &named("two"), 8).unwrap().is_empty());
    let third = import("GGUF llama 10\nthird", "one");
    assert!(blobs.has(&second) && blobs.has(&third));
    assert_eq!(catalogue.copy("one", &named("two"), 9).unwrap(), [second]);
}

#[test]
fn an_entry_of_another_device_is_never_adopted() {
    let machine = Machine::new();
    let stranger = Machine::new();
    let registry = RegistryKey::generate();
    let genesis = genesis_of_network(&machine.device, &registry, "ours");
    machine.store.add_network(&genesis).unwrap();
    let catalogue = Catalogue::new(machine.store.clone(), genesis.network());
    let importer = Importer::new(machine.blobs(), catalogue.clone(), Arc::new(FirstLine));
    let file = machine.file("m.gguf", "GGUF llama 10\nm");
    let staged = importer.stage(&file, Vec::new(), &mut |_, _| {}).unwrap();
    let theirs = signed(&catalogue, stranger.device.signing(), staged.body.clone());
    let own = Signer::Device(machine.device.clone());
    let held = importer.vouch(staged, &named("m"), &own, None, 1).unwrap();
    assert!(!held.adopted);
    assert_ne!(held.held.entry.id(), theirs.id());
    assert_eq!(held.held.entry.author(), machine.device.node());
}

#[test]
fn a_second_registry_key_signs_the_words_of_the_first() {
    let machine = Machine::new();
    let keys = [RegistryKey::generate(), RegistryKey::generate()].map(Arc::new);
    let mut body = genesis_of_network(&machine.device, &keys[0], "ours")
        .body()
        .clone();
    body.registry_keys = keys.iter().map(|key| key.node()).collect();
    body.registry_k = 2;
    let genesis = Verified::<Genesis>::found(body, 0, machine.device.signing()).unwrap();
    machine.store.add_network(&genesis).unwrap();
    let catalogue = Catalogue::new(machine.store.clone(), genesis.network());
    let importer = Importer::new(machine.blobs(), catalogue, Arc::new(FirstLine));
    let file = machine.file("m.gguf", "GGUF llama 10\nm");
    let import = |signer: Signer, name: &str| {
        importer
            .import(&file, &named(name), Vec::new(), &signer, 1, &mut |_, _| {})
            .unwrap()
    };
    let first = import(Signer::Registry(keys[0].clone()), "first");
    let device = import(Signer::Device(machine.device.clone()), "device");
    assert!(!device.adopted, "one of two signatures is not enough");
    let second = import(Signer::Registry(keys[1].clone()), "second");
    assert_eq!(second.held.entry.body(), first.held.entry.body());
    assert_eq!(second.held.entry.author(), keys[1].node());
    let adopted = import(Signer::Device(machine.device.clone()), "third");
    assert!(adopted.adopted);
    assert_eq!(adopted.held.entry.body(), first.held.entry.body());
}

fn signed(catalogue: &Catalogue, key: &SigningKey, body: ModelEntry) -> Verified<ModelEntry> {
    let author = NodeId::from_bytes(key.verifying_key().to_bytes());
    let mut record = Record::new(author, 1, body);
    let records = catalogue.records();
    record.place = Some(records.next_place(&author, Stream::Registry).unwrap());
    let entry = record.sign(key, records.network()).unwrap();
    records
        .put(&[AnyRecord::ModelEntry(entry.clone())])
        .unwrap();
    entry
}

#[test]
fn joining_another_network_keeps_the_models() {
    let machine = Machine::new();
    let held = machine
        .import(&machine.file("a.gguf", "GGUF llama 10\na"), "mine:1")
        .unwrap()
        .held;
    let known = machine
        .import(&machine.file("b.gguf", "GGUF llama 10\nb"), "theirs:1")
        .unwrap()
        .held;
    let registry = RegistryKey::generate();
    let genesis = genesis_of_network(&machine.device, &registry, "ours");
    machine.store.add_network(&genesis).unwrap();
    let there = Catalogue::new(machine.store.clone(), genesis.network());
    let mut record = Record::new(registry.node(), 1, known.entry.body().clone());
    record.place = Some(
        there
            .records()
            .next_place(&registry.node(), Stream::Registry)
            .unwrap(),
    );
    let entry = record.sign(registry.signing(), &genesis.network()).unwrap();
    there
        .records()
        .put(&[AnyRecord::ModelEntry(entry.clone())])
        .unwrap();
    assert_eq!(
        there
            .carry_over(&machine.network, &machine.device, 9)
            .unwrap(),
        2
    );
    assert_eq!(
        there
            .carry_over(&machine.network, &machine.device, 9)
            .unwrap(),
        0,
        "twice changes nothing"
    );
    assert_eq!(
        there.find("theirs:1").unwrap().entry.id(),
        entry.id(),
        "a known entry is adopted"
    );
    let mine = there.find("mine:1").unwrap();
    assert_eq!(
        (mine.weights(), mine.entry.author()),
        (held.weights(), machine.device.node())
    );
    // A blob that a name of the old network needs is not given up by the new one.
    assert!(
        there
            .remove(&named("mine:1"))
            .unwrap()
            .unreferenced
            .is_empty()
    );
}

fn model(name: &str) -> Base {
    Base::Model(name.to_owned())
}

#[test]
fn what_is_made_shares_the_weights_until_the_last_name_is_gone() {
    let machine = Machine::new();
    let file = machine.file("m.gguf", "GGUF llama 10\nweights");
    let base = machine.import(&file, "base:1").unwrap().held;
    let own = machine
        .create("own:1", model("base:1"), "SYSTEM hi\nPARAMETER top_k 3")
        .unwrap();
    assert_eq!(own.entry.id(), base.entry.id());
    let catalogue = machine.catalogue();
    catalogue.copy("own:1", &named("copy:1"), 9).unwrap();
    let copy = catalogue.find("copy:1").unwrap();
    assert_eq!(copy.recipe, own.recipe);
    assert_eq!(
        copy.modelfile(),
        "FROM base:1\nSYSTEM hi\nPARAMETER top_k 3\n"
    );
    for name in ["base:1", "own:1"] {
        let removed = catalogue.remove(&named(name)).unwrap();
        assert!(removed.unreferenced.is_empty(), "{name}");
    }
    let last = catalogue.remove(&named("copy:1")).unwrap();
    assert_eq!(last.unreferenced, [base.weights()]);
}

#[test]
fn what_is_made_from_a_made_model_holds_all_that_one_added() {
    let machine = Machine::new();
    let file = machine.file("m.gguf", "GGUF llama 10\nweights");
    machine.import(&file, "base:1").unwrap();
    let lines = "SYSTEM hi\nPARAMETER top_k 3\nPARAMETER top_p 0.5";
    machine.create("one:1", model("base:1"), lines).unwrap();
    machine
        .create("two:1", model("one:1"), "PARAMETER top_k 4")
        .unwrap();
    let catalogue = machine.catalogue();
    catalogue.remove(&named("one:1")).unwrap();
    assert_eq!(
        catalogue.find("two:1").unwrap().modelfile(),
        "FROM base:1\nSYSTEM hi\nPARAMETER top_k 4\nPARAMETER top_p 0.5\n"
    );
    // A model may be made anew from itself.
    machine
        .create("two:1", model("two:1"), "SYSTEM ho")
        .unwrap();
    let anew = catalogue.find("two:1").unwrap();
    assert_eq!(anew.recipe.unwrap().system.as_deref(), Some("ho"));
}

#[test]
fn a_digest_means_the_weights_and_not_what_was_made_from_them() {
    let machine = Machine::new();
    let file = machine.file("m.gguf", "GGUF llama 10\nweights");
    let base = machine.import(&file, "base:1").unwrap().held;
    machine
        .create("own:1", model("base:1"), "SYSTEM hi")
        .unwrap();
    let digest = format!("sha256:{}", base.weights());
    let found = machine.catalogue().find(&digest).unwrap();
    assert_eq!(found.name, named("base:1"));
    let again = machine
        .create("again:1", model(&digest), "SYSTEM ho")
        .unwrap();
    assert_eq!(again.recipe.unwrap().from, "base:1");
}

#[test]
fn a_file_becomes_a_model_with_what_is_added() {
    let machine = Machine::new();
    let file = machine.file("m.gguf", "GGUF llama 10\nweights");
    let made = machine
        .create("own:1", Base::File(file), "SYSTEM hi")
        .unwrap();
    assert_eq!(made.entry.author(), machine.device.node());
    let recipe = machine.catalogue().find("own:1").unwrap().recipe.unwrap();
    assert_eq!(recipe.from, format!("sha256:{}", made.weights()));
    // What adds nothing is a name of the file, and nothing more.
    let other = machine.file("n.gguf", "GGUF llama 10\nothers");
    let plain = machine.create("plain:1", Base::File(other), "").unwrap();
    assert!(plain.recipe.is_none());
    let bad = machine.file("bad.gguf", "nonsense");
    let refused = machine.create("own:1", Base::File(bad), "SYSTEM ho");
    assert!(matches!(refused, Err(CreateError::Import(_))));
    let unknown = machine.create("own:1", model("nobody:1"), "SYSTEM ho");
    assert!(matches!(
        unknown,
        Err(CreateError::Base(FindError::Unknown { .. }))
    ));
    let kept = machine.catalogue().find("own:1").unwrap().recipe.unwrap();
    assert_eq!(kept.system.as_deref(), Some("hi"), "it is as it was");
}

#[test]
fn another_network_gets_what_was_made_along_with_the_weights() {
    let machine = Machine::new();
    let file = machine.file("m.gguf", "GGUF llama 10\nweights");
    machine.import(&file, "base:1").unwrap();
    let own = machine
        .create("own:1", model("base:1"), "SYSTEM hi")
        .unwrap();
    let genesis = genesis_of_network(&machine.device, &RegistryKey::generate(), "ours");
    machine.store.add_network(&genesis).unwrap();
    let there = Catalogue::new(machine.store.clone(), genesis.network());
    let carried = there.carry_over(&machine.network, &machine.device, 9);
    assert_eq!(carried.unwrap(), 2);
    assert_eq!(there.find("own:1").unwrap().recipe, own.recipe);
}

#[test]
fn a_projector_is_a_file_of_the_model_and_another_model() {
    let machine = Machine::new();
    let weights = machine.file("a.gguf", "GGUF llama 10\nweights");
    let projector = machine.file("mmproj.gguf", "GGUF clip 10\nprojector");
    let blind = machine.import(&weights, "blind:1").unwrap().held;
    let importer = machine.importer();
    let mut staged = importer
        .stage(&weights, Vec::new(), &mut |_, _| {})
        .unwrap();
    importer
        .add(&mut staged, More::Projector, &projector, &mut |_, _| {})
        .unwrap();
    let signer = Signer::Device(machine.device.clone());
    let sees = importer
        .vouch(staged, &named("sees:1"), &signer, None, 8)
        .unwrap();
    assert!(
        !sees.adopted,
        "the entry without a projector is another model's"
    );
    let sees = sees.held;
    assert_eq!(sees.weights(), blind.weights());
    assert_ne!(sees.parts(), blind.parts());
    assert!(sees.parts().projector.is_some() && sees.size() > blind.size());
    // Each file stays as long as a name needs it.
    let removed = importer.catalogue().remove(&named("blind:1")).unwrap();
    assert!(removed.unreferenced.is_empty());
    let removed = importer.catalogue().remove(&named("sees:1")).unwrap();
    assert_eq!(removed.unreferenced.len(), 2);
}

#[test]
fn what_is_no_projector_is_not_taken_for_one_nor_a_projector_for_a_model() {
    let machine = Machine::new();
    let weights = machine.file("a.gguf", "GGUF llama 10\nweights");
    let projector = machine.file("mmproj.gguf", "GGUF clip 10\nprojector");
    let importer = machine.importer();
    let mut staged = importer
        .stage(&weights, Vec::new(), &mut |_, _| {})
        .unwrap();
    for (file, why) in [
        (&weights, "no projector"),
        (&machine.file("b.gguf", "rubbish"), "no GGUF magic"),
    ] {
        let refused = importer.add(&mut staged, More::Projector, file, &mut |_, _| {});
        let told = refused.unwrap_err().to_string();
        assert!(told.contains(why), "{told}");
    }
    assert_eq!(staged.body.files.len(), 1);
    let told = machine.import(&projector, "eye:1").unwrap_err().to_string();
    assert!(told.contains("--projector"), "{told}");
}

#[test]
fn an_adapter_makes_another_model_of_the_same_weights() {
    let machine = Machine::new();
    let weights = machine.file("m.gguf", "GGUF llama 10\nweights");
    let lora = machine.file("lora.gguf", "GGUF llama 10 adapter\nlora");
    let base = machine.import(&weights, "base:1").unwrap().held;
    let lines = "SYSTEM hi";
    let adapter = || Some(Adapter::File(lora.clone()));
    let own = machine
        .create_with("own:1", model("base:1"), adapter(), lines)
        .unwrap();
    assert_eq!(own.weights(), base.weights());
    assert_ne!(own.entry.id(), base.entry.id(), "it answers otherwise");
    let adapted = own.parts().adapter.unwrap();
    assert_eq!(
        own.modelfile(),
        format!("FROM base:1\nADAPTER sha256:{adapted}\nSYSTEM hi\n")
    );
    // By the digest of what is here; from a file, with nothing added; and over a model that was made.
    let again = machine
        .create_with("again:1", model("base:1"), Some(Adapter::Blob(adapted)), "")
        .unwrap();
    assert_eq!(again.entry.id(), own.entry.id());
    let file = machine
        .create_with("file:1", Base::File(weights), adapter(), "")
        .unwrap();
    assert_eq!(file.parts(), own.parts());
    let over = machine
        .create("over:1", model("own:1"), "SYSTEM ho")
        .unwrap();
    assert_eq!(over.parts(), own.parts());
    let second = machine.create_with("second:1", model("own:1"), adapter(), "");
    let told = second.unwrap_err().to_string();
    assert!(told.contains("has its adapter already"), "{told}");
    // Its bytes stay as long as a name needs them.
    let catalogue = machine.catalogue();
    for name in ["base:1", "own:1", "again:1", "file:1"] {
        let removed = catalogue.remove(&named(name)).unwrap();
        assert!(removed.unreferenced.is_empty(), "{name}");
    }
    assert_eq!(
        catalogue
            .remove(&named("over:1"))
            .unwrap()
            .unreferenced
            .len(),
        2
    );
}

#[test]
fn what_is_no_adapter_for_the_model_makes_none() {
    let machine = Machine::new();
    let weights = machine.file("m.gguf", "GGUF llama 10\nweights");
    machine.import(&weights, "base:1").unwrap();
    let file = |name, text| Adapter::File(machine.file(name, text));
    for (adapter, why) in [
        (Adapter::File(weights.clone()), "no adapter"),
        (
            file("a.gguf", "GGUF qwen2 10 adapter"),
            "architecture qwen2",
        ),
        (file("b.gguf", "rubbish"), "no GGUF magic"),
        (Adapter::File("/nowhere/c.gguf".into()), "c.gguf"),
    ] {
        let refused = machine.create_with("own:1", model("base:1"), Some(adapter), "SYSTEM hi");
        let told = format!("{:#}", anyhow::Error::from(refused.unwrap_err()));
        assert!(told.contains(why), "{why}: {told}");
    }
    assert!(machine.catalogue().find("own:1").is_err());
    let lora = machine.file("lora.gguf", "GGUF llama 10 adapter\nlora");
    let told = machine.import(&lora, "lora:1").unwrap_err().to_string();
    assert!(told.contains("ADAPTER"), "{told}");
}
