//! Refuse rather than lie: what cannot be stored is answered 503, and service comes back by itself.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use gateway_tests::{
    DEADLINE, Receiver, World,
    agent::AgentOptions,
    eventually, http,
    meta::{Answer, Disguise, text_message, unique_wamid},
    process::free_port,
    python::run,
    world::{WorldOptions, subscribe},
};
use tokio::{
    process::Command,
    sync::{Mutex, MutexGuard},
};

const FROM: &str = "966500000001";
/// Size of the disk that is filled.
const DISK_BYTES: usize = 48 << 20;
/// What is left of it for the least free space to be kept.
const LEFT_BYTES: usize = 2 << 20;
/// Padding of each callback, so that few of them fill a small buffer.
const PADDING_BYTES: usize = 64 * 1024;

async fn world_with(arguments: &[&str], wrapper: &[&str]) -> World {
    let agent = AgentOptions {
        arguments: arguments.iter().map(ToString::to_string).collect(),
        wrapper: wrapper.iter().map(ToString::to_string).collect(),
        ..AgentOptions::default()
    };
    World::start_with(WorldOptions { agent, ..WorldOptions::default() }).await.unwrap()
}

/// Posts one message with a long text.
async fn post_long(world: &World, wamid: &str) -> anyhow::Result<Answer> {
    let message = text_message(wamid, FROM, &"x".repeat(PADDING_BYTES));
    world
        .provider
        .post_bytes(serde_json::to_vec(&world.provider.messages(&[message]))?, Disguise::default())
        .await
}

/// Posts long messages until one is refused; gives the ids of those that were taken.
async fn post_until_refused(world: &World) -> anyhow::Result<Vec<String>> {
    let mut taken = Vec::new();
    for _ in 0..10_000 {
        let wamid = unique_wamid();
        let answer = post_long(world, &wamid).await?;
        if answer.status == 200 {
            taken.push(wamid);
            continue;
        }
        ensure!(answer.status == 503, "answered {}", answer.status);
        let retry_after = answer.headers.get("retry-after").context("503 without Retry-After")?;
        ensure!(retry_after.to_str()?.parse::<u32>()? >= 1, "Retry-After {retry_after:?}");
        return Ok(taken);
    }
    anyhow::bail!("nothing was refused")
}

/// Posts until a message is taken again. A destination that was away is tried every half a minute or so.
async fn post_until_taken(world: &World) -> anyhow::Result<String> {
    eventually(DEADLINE * 2, async || {
        let wamid = unique_wamid();
        let answer = post_long(world, &wamid).await?;
        ensure!(answer.status == 200, "still answered {}", answer.status);
        Ok(wamid)
    })
    .await
}

/// The budget of the buffer is used up by a destination that is away: callbacks get 503 with Retry-After,
/// while the agent lives on; the destination comes back, everything that was taken arrives, and callbacks
/// are taken again without a restart.
#[tokio::test]
async fn full_buffer_refuses_until_it_drains() {
    let world = world_with(&["--buffer-bytes-max", "2MiB"], &[]).await;
    let port = free_port().unwrap();
    subscribe(world.client(), &format!("http://127.0.0.1:{port}/away"), &["message.received"]).await.unwrap();
    world.config_applied().await.unwrap();
    let taken = post_until_refused(&world).await.unwrap();
    assert!(!taken.is_empty(), "nothing fits into the buffer");
    let client = http::client().unwrap();
    http::expect_ok(&client, &world.agent.admin_url("/livez")).await.unwrap();
    // What was taken goes on being delivered to the destination that works.
    for wamid in &taken {
        world.delivered(wamid).await.unwrap();
    }
    let back = Receiver::start_on(port).await.unwrap();
    let again = post_until_taken(&world).await.unwrap();
    world.delivered(&again).await.unwrap();
    eventually(DEADLINE * 2, async || {
        let arrived: Vec<String> =
            back.all().iter().map(|webhook| webhook.text("external_message_id")).collect();
        let missing = taken.iter().filter(|wamid| !arrived.contains(wamid)).count();
        ensure!(missing == 0, "{missing} of {} have not arrived", taken.len());
        Ok(())
    })
    .await
    .unwrap();
}

/// A disk that runs full while the agent runs: 503, and nothing that was taken is lost; when there is space
/// again, callbacks are taken without a restart.
#[tokio::test]
async fn full_disk_refuses_until_there_is_space() {
    let disk = SmallDisk::new().await.unwrap();
    let mut world = disk.world(&["--disk-free-bytes-min", "0"]).await;
    let before = world.provider.say(FROM, "before").await.unwrap();
    world.delivered(&before).await.unwrap();
    let filler = disk.fill(&mut world).unwrap();
    let taken = post_until_refused(&world).await.unwrap();
    let client = http::client().unwrap();
    http::expect_ok(&client, &world.agent.admin_url("/livez")).await.unwrap();
    for wamid in &taken {
        world.delivered(wamid).await.unwrap();
    }
    fs::remove_file(&filler).unwrap();
    let after = post_until_taken(&world).await.unwrap();
    world.delivered(&after).await.unwrap();
    eventually(DEADLINE, async || {
        let logs = world.logs().await?;
        let logged = |wamid: &String| logs.iter().any(|log| log.external_message_id == *wamid);
        ensure!(taken.iter().chain([&before, &after]).all(logged), "{} logs", logs.len());
        Ok(())
    })
    .await
    .unwrap();
}

/// Less free space than the least: 503 while the disk still has space, which is what the agent needs to go on
/// working, and taken again when there is more.
#[tokio::test]
async fn least_free_space_is_kept() {
    let disk = SmallDisk::new().await.unwrap();
    // Of a disk this small a twentieth is kept free by default.
    let mut world = disk.world(&[]).await;
    let filler = disk.fill(&mut world).unwrap();
    let file = File::options().write(true).open(&filler).unwrap();
    file.set_len(file.metadata().unwrap().len() - u64::try_from(LEFT_BYTES).unwrap()).unwrap();
    drop(file);
    // Short ones, which would fit for long.
    eventually(DEADLINE, async || {
        let message = text_message(&unique_wamid(), FROM, "short");
        let answer = world.provider.post(&world.provider.messages(&[message])).await?;
        ensure!(answer.status == 503, "answered {}", answer.status);
        Ok(())
    })
    .await
    .unwrap();
    fs::write(filler.with_file_name("more"), vec![0; LEFT_BYTES / 2]).unwrap();
    let client = http::client().unwrap();
    http::expect_ok(&client, &world.agent.admin_url("/livez")).await.unwrap();
    fs::remove_file(&filler).unwrap();
    let after = post_until_taken(&world).await.unwrap();
    world.delivered(&after).await.unwrap();
}

/// A second agent on a data directory that is in use ends with a message that names the directory, and
/// leaves the first one alone.
#[tokio::test]
async fn second_agent_on_the_same_directory_is_refused() {
    let world = World::start().await.unwrap();
    let mut twin = world.agent.twin().await.unwrap();
    let status = twin.ended().await.unwrap();
    assert!(!status.success());
    let text = twin.log_text().unwrap();
    let directory = world.agent.data_dir();
    assert!(text.contains(directory.to_str().unwrap()), "{text}");
    assert!(!text.contains("panicked"), "{text}");
    let wamid = world.provider.say(FROM, "still here").await.unwrap();
    world.delivered(&wamid).await.unwrap();
}

/// A small file system under the agent's data directory: one of its own, mounted in a namespace that ends
/// with the agent; or, in a container that may not mount, the small one that containers have.
struct SmallDisk {
    wrapper: Vec<String>,
    shared: Option<Shared>,
}

/// A directory in [`Shared::ROOT`], while nobody else fills it.
struct Shared {
    directory: PathBuf,
    _turn: MutexGuard<'static, ()>,
}

impl Shared {
    const ROOT: &str = "/dev/shm";
    /// A larger one would take the machine's memory. Containers have 64 MiB.
    const BYTES_MAX: usize = 256 << 20;
}

impl Drop for Shared {
    fn drop(&mut self) {
        // What is left there ends with the container.
        drop(fs::remove_dir_all(&self.directory));
    }
}

impl SmallDisk {
    /// Finds a way: as root in a mount namespace, otherwise in a user namespace, otherwise shared.
    async fn new() -> anyhow::Result<Self> {
        let mount = format!("mount -t tmpfs -o size={DISK_BYTES} tmpfs");
        let directory = tempfile::tempdir()?;
        for namespaces in [vec!["--mount"], vec!["--user", "--map-root-user", "--mount"]] {
            let script = format!("{mount} {}", directory.path().display());
            let probe = [namespaces.as_slice(), &["sh", "-c", &script]].concat();
            let probe = Command::new("unshare").args(&probe).output().await;
            if probe.is_ok_and(|output| output.status.success()) {
                let program = [&["unshare"], namespaces.as_slice()].concat();
                let script = format!("mkdir -p \"$3\" && {mount} \"$3\" && exec \"$@\"");
                return Ok(Self { wrapper: wrapper(&program, script), shared: None });
            }
        }
        Self::shared().await.context(
            "make a small file system: this test needs `unshare` and `mount` (Debian and Ubuntu: apt-get install \
             util-linux mount) and the right to use them: run it as root, or allow unprivileged user namespaces \
             (sysctl kernel.unprivileged_userns_clone=1)",
        )
    }

    async fn shared() -> anyhow::Result<Self> {
        static TURN: Mutex<()> = Mutex::const_new(());
        let turn = TURN.lock().await;
        let size = run("df", ["--output=size", "--block-size=1", Shared::ROOT]).await?;
        let size: usize = size.lines().last().unwrap_or_default().trim().parse()?;
        ensure!(size <= Shared::BYTES_MAX, "`{}` has {size} bytes, too many to fill", Shared::ROOT);
        let directory = Path::new(Shared::ROOT).join(format!("gateway-tests-{}", uuid::Uuid::new_v4()));
        fs::create_dir(&directory)?;
        let script = format!("ln -s {} \"$3\" && exec \"$@\"", directory.display());
        Ok(Self { wrapper: wrapper(&[], script), shared: Some(Shared { directory, _turn: turn }) })
    }

    /// A gateway whose agent keeps its data there.
    async fn world(&self, arguments: &[&str]) -> World {
        let wrapper: Vec<&str> = self.wrapper.iter().map(String::as_str).collect();
        world_with(arguments, &wrapper).await
    }

    /// Fills the disk to the last byte; gives the file that does it.
    fn fill(&self, world: &mut World) -> anyhow::Result<PathBuf> {
        let pid = world.agent.process().pid();
        let path = match &self.shared {
            Some(shared) => shared.directory.join("filler"),
            None => PathBuf::from(format!("/proc/{pid}/root{}/filler", world.agent.data_dir().display())),
        };
        let mut file = File::create(&path).context("write into the agent's file system")?;
        let mut chunk = vec![0; 1 << 16];
        while !chunk.is_empty() {
            if file.write_all(&chunk).is_err() {
                chunk.truncate(chunk.len() / 2);
            }
        }
        Ok(path)
    }
}

/// Runs the agent by `program` and a script, in which `$1` is the agent, `$2` is `--data-dir` and `$3` is
/// that directory.
fn wrapper(program: &[&str], script: String) -> Vec<String> {
    let mut wrapper: Vec<String> = program.iter().map(ToString::to_string).collect();
    wrapper.extend(["sh".to_owned(), "-c".to_owned(), script, "sh".to_owned()]);
    wrapper
}

/// The control plane, too, names the directory that another one uses.
#[tokio::test]
async fn second_control_plane_on_the_same_directory_is_refused() {
    let world = World::start().await.unwrap();
    let program = &gateway_tests::programs::programs().await.unwrap().control_plane;
    let directory: &Path = &world.control_plane.data_dir();
    let listen = ["--grpc-listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--data-dir"];
    let arguments = listen.map(std::ffi::OsStr::new).into_iter().chain([directory.as_os_str()]);
    let refused = run(program, arguments).await.unwrap_err().to_string();
    assert!(refused.contains(directory.to_str().unwrap()), "{refused}");
}
