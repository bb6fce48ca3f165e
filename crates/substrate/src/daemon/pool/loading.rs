//! One load at a time: the header read, the memory reckoned, room made, then the worker.
//!
//! Invariant: no process that loads is started for a model that does not fit, and what runs is not touched for it.
//! Those who want another model meanwhile wait in the order they came.

use std::sync::Arc;
use std::time::{Duration, Instant};

use substrate_record::{ContentHash, WallTier};
use substrate_sandbox::launch::{Wall, WallSpec, Worker};
use substrate_sandbox::wire::{Failure, Load, ModelFacts, OnGpu, ToWorker};
use tokio::time::timeout;

use super::machines::Work;
use super::room::{self, Resident, Step};
use super::{CONTEXTS, LoadError, Loading, Pool, Slot, Stage, USUAL, lock};
use crate::daemon::context::blocking;
use crate::daemon::engine::{self, Engine, WorkError};
use crate::daemon::views::memory_of;
use crate::hardware;
use crate::models::fit::{self, Estimate, Free, Misfit, Place, Setting};
use crate::models::parts::Parts;

/// The context tried once more where the owner named none and the usual one does not fit.
const SMALLER_CONTEXT: u32 = 2048;

/// What a projector takes for each byte of its file: itself, and about as much for one image under way.
const PER_BYTE_OF_PROJECTOR: u64 = 2;

/// Caches of its own for every answer may take this part of what is free, where the owner said nothing: they are memory for speed,
/// and others want memory too.
const PART_FOR_OWN_CELLS: u64 = 8;

/// How long a load waits for a job to end before it looks again: an engine may also die.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How a model is loaded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Manner {
    /// Answers at a time.
    pub slots: u32,
    /// Behind which wall.
    pub wall: WallTier,
}

/// What a model would take here now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fit {
    /// How it would be loaded, or is.
    pub setting: Setting,
    /// What that takes.
    pub estimate: Estimate,
    /// Where it would run, or why nowhere.
    pub place: Result<Place, String>,
}

impl Pool {
    /// For everybody's answers, behind the usual wall.
    pub(super) fn shared(&self) -> Manner {
        Manner {
            slots: self.settings.slots,
            wall: USUAL,
        }
    }

    /// Loads a model whose slot the caller holds.
    pub(super) async fn load(
        &self,
        parts: &Parts,
        slot: &Slot,
        manner: Manner,
    ) -> Result<Engine, LoadError> {
        let under_way = UnderWay::begin(slot);
        let _turn = self.turns.lock().await;
        under_way.enter(Stage::Reading);
        let facts = self.inspected(parts).await?;
        under_way.enter(Stage::MakingRoom);
        let (mut setting, place) = self.make_room(parts, &facts, manner.slots).await?;
        under_way.enter(Stage::Loading);
        let load = async |setting: &Setting| {
            let estimate = fit::estimate(&facts.shape, facts.n_vocab, setting);
            let worker = self.launch_in(manner.wall, parts, estimate.total()).await?;
            self.load_with(worker, manner.wall, parts, setting, place)
                .await
        };
        let mut loaded = load(&setting).await;
        if let (Err(LoadError::Work(error)), Some(smaller)) = (&loaded, self.smaller(&setting))
            && is_out_of_memory(error)
        {
            tracing::warn!(model = %parts, %error, context = smaller.context, "loading once more with a smaller context");
            setting = smaller;
            loaded = load(&setting).await;
        }
        let engine = loaded?;
        let estimate = fit::estimate(&facts.shape, facts.n_vocab, &setting);
        lock(&slot.seen).estimate = Some(estimate);
        Ok(engine)
    }

    async fn load_with(
        &self,
        worker: Worker,
        wall: WallTier,
        parts: &Parts,
        setting: &Setting,
        place: Place,
    ) -> Result<Engine, LoadError> {
        let threads = self.threads_behind(wall);
        let load = Load {
            n_ctx: setting.context,
            slots: setting.slots,
            cells: setting.cells,
            threads,
            batch_threads: threads,
            kv: setting.kv,
            flash_attention: setting.flash_attention,
            apart: setting.apart,
            prompt_lookup: self.settings.prompt_lookup,
            projector: parts.projector.is_some(),
            adapter: parts.adapter.is_some(),
            gpu: on_gpu(place),
        };
        let start = Instant::now();
        let engine = Engine::load(worker, ToWorker::Load(load), self.settings.load_timeout).await?;
        if setting.context > 0 && engine.facts().n_ctx > setting.context {
            return Err(engine
                .condemn("it has more context than it was given")
                .into());
        }
        tracing::info!(model = %parts, pid = engine.pid(), ms = start.elapsed().as_millis(), context = setting.context, apart = setting.apart, place = %place.word(), "worker loaded");
        Ok(engine)
    }

    /// Threads of an engine at its start. Emulated processors that wait for each other by spinning wait for ever, so there is one.
    fn threads_behind(&self, wall: WallTier) -> u32 {
        match wall {
            WallTier::MicrovmEmulated => 1,
            _ => lock(&self.free).threads().max(1),
        }
    }

    /// A worker behind this wall, which is reckoned to take so many bytes.
    async fn launch_in(
        &self,
        wall: WallTier,
        parts: &Parts,
        bytes: u64,
    ) -> Result<Worker, LoadError> {
        if !wall.is_machine() {
            return self.launch(parts).await;
        }
        self.check(parts).await?;
        let path = |digest| self.blobs.path(&digest);
        let work = Work {
            files: [
                Some(path(parts.weights)),
                parts.projector.map(path),
                parts.adapter.map(path),
            ],
            memory: bytes,
            processors: self.threads_behind(wall),
        };
        let machines = self.machines.clone();
        let worker = blocking(move || match machines.as_ref() {
            Ok(machines) => machines.worker(&work),
            Err(why) => Err(why.clone()),
        });
        worker
            .await
            .map_err(|error| LoadError::Wall(error.to_string()))
    }

    async fn launch(&self, parts: &Parts) -> Result<Worker, LoadError> {
        self.check(parts).await?;
        let path = |digest| self.blobs.path(&digest);
        let spec = self.spec(path(parts.weights));
        let spec = WallSpec {
            projector: parts.projector.map(path),
            adapter: parts.adapter.map(path),
            ..spec.map_err(|error| LoadError::Wall(error.to_string()))?
        };
        blocking(move || Wall::spawn(spec))
            .await
            .map_err(|error| LoadError::Wall(error.to_string()))
    }

    /// What the file's header says, read behind the wall once for each model that has a name here.
    async fn inspected(&self, parts: &Parts) -> Result<Arc<ModelFacts>, LoadError> {
        if let Some(known) = lock(&self.inspected).get(parts) {
            return Ok(known.clone());
        }
        let worker = self.launch(parts).await?;
        let mut facts = {
            let within = self.settings.load_timeout;
            blocking(move || engine::inspect(worker, within)).await?
        };
        let size = |part: Option<ContentHash>| part.and_then(|digest| self.blobs.size(&digest));
        let sees = size(parts.projector).unwrap_or(0);
        let more = sees.saturating_mul(PER_BYTE_OF_PROJECTOR);
        let more = more.saturating_add(size(parts.adapter).unwrap_or(0));
        facts.shape.rest_bytes = facts.shape.rest_bytes.saturating_add(more);
        let facts = Arc::new(facts);
        let named: Vec<Parts> = lock(&self.known).keys().copied().collect();
        let mut inspected = lock(&self.inspected);
        inspected.retain(|parts, _| named.contains(parts));
        inspected.insert(*parts, facts.clone());
        Ok(facts)
    }

    /// What a model takes with the context asked for, or as it would be loaded.
    ///
    /// # Errors
    /// Its header could not be read.
    pub async fn fit(&self, parts: &Parts, context: Option<u32>) -> Result<Fit, LoadError> {
        let facts = self.inspected(parts).await?;
        let as_loaded = self.loaded_context(parts);
        let context = context
            .map(|context| within(context, facts.n_ctx_train))
            .or(as_loaded)
            .unwrap_or_else(|| self.context_of(parts, facts.n_ctx_train));
        let others = self.residents().into_iter();
        let others: Vec<Resident> = others.filter(|other| other.parts != *parts).collect();
        let mut free = self.free_now(&others).await;
        // What the model itself holds now would be its own again.
        let own = self.engine_of(parts);
        let own = own.map_or(0, |engine| memory_of(engine.pid()).1);
        free.memory = free.memory.saturating_add(own);
        let setting = self.roomiest(self.setting(context, self.settings.slots), &facts, &free);
        let place = fit::place(&facts.shape, facts.n_vocab, &setting, &free);
        Ok(Fit {
            setting,
            estimate: fit::estimate(&facts.shape, facts.n_vocab, &setting),
            place: place.map_err(|misfit| in_words(&setting, misfit, &self.busy(&others))),
        })
    }

    /// Unloads who must go, and says how and where the model is to be loaded.
    async fn make_room(
        &self,
        parts: &Parts,
        facts: &ModelFacts,
        slots: u32,
    ) -> Result<(Setting, Place), LoadError> {
        let shared = self.setting(self.context_of(parts, facts.n_ctx_train), slots);
        let free = self.free_now(&self.residents()).await;
        let mut wanted = self.roomiest(shared, facts, &free);
        loop {
            let residents = self.residents();
            let free = self.free_now(&residents).await;
            let place = |freed: u64| {
                let memory = free.memory.saturating_add(freed);
                let free = Free {
                    memory,
                    ..free.clone()
                };
                fit::place(&facts.shape, facts.n_vocab, &wanted, &free)
            };
            let most = self.settings.max_loaded as usize;
            match room::next(&residents, most, |freed| place(freed).map(drop)) {
                // What fits only because others may leave is in memory.
                Step::Load => return Ok((wanted, place(0).unwrap_or(Place::Cpu))),
                Step::Unload(parts) => {
                    tracing::info!(model = %parts, "unloaded to make room");
                    self.unload(&parts).await;
                }
                Step::Wait => {
                    let _ = timeout(LOOK_AGAIN, self.released.notified()).await;
                }
                // Memory went meanwhile.
                Step::Refuse(_) if wanted.apart => wanted = shared,
                Step::Refuse(misfit) => match self.smaller(&wanted) {
                    Some(smaller) => wanted = smaller,
                    None => return Err(self.no_room(parts, &wanted, misfit, &residents)),
                },
            }
        }
    }

    /// How a model of this context is loaded for so many answers at a time.
    fn setting(&self, context: u32, slots: u32) -> Setting {
        Setting {
            context,
            slots,
            cells: context.saturating_mul(CONTEXTS.min(slots)),
            apart: false,
            kv: self.settings.kv,
            flash_attention: self.settings.flash_attention,
        }
    }

    /// The setting with cells of its own for every answer, if those may be had: the owner wants them or they are a small part of
    /// what is free, and nothing would have to make room for them.
    fn roomiest(&self, shared: Setting, facts: &ModelFacts, free: &Free) -> Setting {
        let apart = Setting {
            apart: true,
            ..shared
        };
        let can = shared.slots > 1 && facts.shape.state == 0;
        let cache = fit::estimate(&facts.shape, facts.n_vocab, &apart).kv_cache;
        // What a graphics processor has left is not asked for this.
        let small = free.gpus.is_empty() && cache <= free.memory / PART_FOR_OWN_CELLS;
        let fits = || fit::place(&facts.shape, facts.n_vocab, &apart, free).is_ok();
        match can && self.settings.own_cells.unwrap_or(small) && fits() {
            true => apart,
            false => shared,
        }
    }

    /// The one smaller setting that may be tried, where the owner left the context to us.
    fn smaller(&self, setting: &Setting) -> Option<Setting> {
        let automatic = self.settings.context.is_none() && setting.context > SMALLER_CONTEXT;
        automatic.then(|| self.setting(SMALLER_CONTEXT, setting.slots))
    }

    /// What is free, less what the loaded models were promised of it.
    async fn free_now(&self, residents: &[Resident]) -> Free {
        let promised = residents.iter().map(|resident| resident.promised);
        let promised = promised.fold(0, u64::saturating_add);
        Free {
            memory: hardware::free_memory().saturating_sub(promised),
            limit: self.settings.owner_limit,
            gpus: self.free_gpus().await,
        }
    }

    /// Free memory of each graphics processor, in the engine's own order, which a load names them by. What an integrated
    /// one has is the machine's memory, which is reckoned without it.
    async fn free_gpus(&self) -> Vec<u64> {
        if !self.settings.uses_gpus() {
            return Vec::new();
        }
        match hardware::engine_gpus(&self.settings.binary).await {
            Ok(gpus) => {
                let free = gpus.iter();
                free.map(|gpu| if gpu.integrated { 0 } else { gpu.free })
                    .collect()
            }
            Err(error) => {
                tracing::warn!(%error, "nothing is loaded onto graphics processors");
                Vec::new()
            }
        }
    }

    fn residents(&self) -> Vec<Resident> {
        let resident = |(parts, slot): (Parts, Arc<Slot>)| {
            let seen = lock(&slot.seen).clone();
            let engine = seen.engine.filter(Engine::is_alive)?;
            let (resident, own) = memory_of(engine.pid());
            let bytes = seen.estimate.map_or(resident, |estimate| estimate.total());
            Some(Resident {
                parts,
                busy: seen.busy,
                stay: seen.keep_alive.unwrap_or(self.settings.keep_alive),
                idle: seen.last_used.map_or(Duration::ZERO, |at| at.elapsed()),
                bytes,
                promised: bytes.saturating_sub(own),
            })
        };
        self.slots().into_iter().filter_map(resident).collect()
    }

    /// Ends an idle worker; one that was taken meanwhile stays.
    async fn unload(&self, parts: &Parts) {
        let Some(slot) = lock(&self.models).get(parts).cloned() else {
            return;
        };
        let mut held = slot.engine.lock().await;
        let mut seen = lock(&slot.seen);
        if seen.busy > 0 {
            return;
        }
        *held = None;
        seen.forget();
    }

    fn no_room(
        &self,
        parts: &Parts,
        setting: &Setting,
        misfit: Misfit,
        residents: &[Resident],
    ) -> LoadError {
        LoadError::NoRoom {
            model: self.name_of(parts),
            why: in_words(setting, misfit, &self.busy(residents)),
        }
    }

    /// Names of the models that answer.
    fn busy(&self, residents: &[Resident]) -> Vec<String> {
        let busy = residents.iter().filter(|resident| resident.busy > 0);
        busy.map(|resident| self.name_of(&resident.parts)).collect()
    }

    fn name_of(&self, parts: &Parts) -> String {
        let name = lock(&self.known).get(parts).cloned();
        name.unwrap_or_else(|| parts.to_string())
    }
}

/// What it needs, what there is, and what its owner can do about it.
fn in_words(setting: &Setting, misfit: Misfit, busy: &[String]) -> String {
    let needs = fit::in_words(misfit.needs);
    let (context, slots) = (setting.context, setting.slots);
    let has = match misfit.over_limit {
        true => format!(
            "lending.memory lets one model take {}",
            fit::in_words(misfit.may)
        ),
        false => format!(
            "{} of the {} free may be taken",
            fit::in_words(misfit.may),
            fit::in_words(misfit.free)
        ),
    };
    let share = match setting.apart {
        true => ", or turn models.own_cells off",
        false => "",
    };
    let unload = match busy {
        [] => String::new(),
        names => format!(
            ", wait for {} or unload it (`substrate stop`)",
            names.join(", ")
        ),
    };
    format!(
        "it needs {needs} with a context of {context} tokens for {slots} answers at a time, and {has}: \
         set a smaller models.context or models.parallel{share}, take a smaller quantisation of the model{unload}"
    )
}

/// As the worker is told it.
fn on_gpu(place: Place) -> Option<OnGpu> {
    let (index, layers) = match place {
        Place::Gpu { index } => (index, u32::MAX),
        Place::Split { index, layers } => (index, layers),
        Place::Cpu => return None,
    };
    let device = u32::try_from(index).ok()?;
    Some(OnGpu { device, layers })
}

/// A context asked for, as the engine would give it.
fn within(context: u32, trained: u32) -> u32 {
    match trained {
        0 => context.max(1),
        trained => context.clamp(1, trained),
    }
}

fn is_out_of_memory(error: &WorkError) -> bool {
    matches!(
        error,
        WorkError::Failed {
            why: Failure::OutOfMemory,
            ..
        }
    )
}

/// A load that lists show until it ends, however it does.
struct UnderWay<'a>(&'a Slot);

impl<'a> UnderWay<'a> {
    fn begin(slot: &'a Slot) -> Self {
        let mut seen = lock(&slot.seen);
        seen.loading = Some(Loading {
            stage: Stage::Waiting,
            since: Instant::now(),
            alone: seen.alone,
            wall: seen.wall,
        });
        drop(seen);
        Self(slot)
    }

    fn enter(&self, stage: Stage) {
        if let Some(loading) = lock(&self.0.seen).loading.as_mut() {
            loading.stage = stage;
        }
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        lock(&self.0.seen).loading = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blobs::Blobs;
    use crate::daemon::pool::Whose;
    use crate::daemon::testing::{no_worker, until};
    use substrate_sandbox::wire::KvType;

    const SETTING: Setting = Setting {
        context: 2048,
        slots: 8,
        cells: 4096,
        apart: false,
        kv: KvType::F16,
        flash_attention: true,
    };

    const MISFIT: Misfit = Misfit {
        needs: 5 << 30,
        may: 4 << 30,
        free: 5 << 30,
        over_limit: false,
    };

    #[test]
    fn a_refusal_says_what_is_needed_what_is_free_and_what_to_do() {
        let told = in_words(&SETTING, MISFIT, &["big:7b".to_owned()]);
        for part in [
            "5.0 GiB with a context of 2048",
            "4.0 GiB of the 5.0 GiB free",
            "models.context",
            "smaller quantisation",
            "big:7b",
        ] {
            assert!(told.contains(part), "{told}");
        }
    }

    #[test]
    fn a_place_is_told_to_the_worker_by_the_engines_own_number() {
        let (device, layers) = (1, 7);
        let split = Place::Split { index: 1, layers };
        assert_eq!(on_gpu(split), Some(OnGpu { device, layers }));
        let all = on_gpu(Place::Gpu { index: 1 }).map(|gpu| gpu.layers);
        assert_eq!(all, Some(u32::MAX), "its output too");
        assert_eq!(on_gpu(Place::Cpu), None);
    }

    #[tokio::test]
    async fn one_model_is_loaded_at_a_time_and_the_others_come_in_order() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let blobs = Blobs::open(folder.path()).expect("blobs");
        let pool = Pool::new(no_worker(), blobs);
        let turn = pool.turns.lock().await;
        let (ended, mut ends) = tokio::sync::mpsc::channel(3);
        for n in 1..=3 {
            let (asker, ended) = (pool.clone(), ended.clone());
            tokio::spawn(async move {
                let absent = asker
                    .lease(&ContentHash::from_bytes([n; 32]).into(), Whose::Owners)
                    .await;
                assert!(matches!(absent, Err(LoadError::NoBlob(_))));
                ended.send(n).await
            });
            let all_wait = |loading: &[(Parts, Loading)]| {
                loading.len() == usize::from(n)
                    && loading.iter().all(|(_, one)| one.stage == Stage::Waiting)
            };
            until("it waits", async || all_wait(&pool.loading()).then_some(())).await;
        }
        assert!(ends.try_recv().is_err(), "somebody loads already");
        drop(turn);
        for n in 1..=3 {
            assert_eq!(ends.recv().await, Some(n));
        }
        assert!(pool.loading().is_empty(), "a load that failed is over");
    }

    #[test]
    fn the_owners_own_limit_is_named() {
        let limited = Misfit {
            over_limit: true,
            ..MISFIT
        };
        let told = in_words(&SETTING, limited, &[]);
        assert!(told.contains("lending.memory") && !told.contains("unload"));
    }
}
