"""Recurrent PPO (scripts/train_policy.py): a rollout step by step is the trajectory in one call, rewards belong to their actions,
advantages and the loss are those of their definitions, and a policy with memory learns what one without cannot."""

import json
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import train_policy
import training
from flax import nnx
from train_policy import Environments, Policy, Steps

ROWS, HIDDEN = 5, 6


@pytest.fixture(autouse=True)
def promotion():
    """Gymnax mixes dtypes, so what trains does without strict promotion."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def make(name, environments, seed=0):
    """A policy with parameters that are all random, none near zero, and where its environments begin."""
    observation_size = jax.eval_shape(environments.reset, jax.random.split(jax.random.key(0), 1))[0].shape[-1]
    policy = Policy(name, observation_size, HIDDEN, environments.actions, span=7, rngs=nnx.Rngs(seed))
    graph, params = nnx.split(policy)
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    leaves = [a + jax.random.normal(key, a.shape) / 2 for a, key in zip(leaves, keys, strict=True)]
    policy = nnx.merge(graph, jax.tree.unflatten(structure, leaves))
    return policy, train_policy.begin(policy, environments, jax.random.key(seed + 1), ROWS)


play = nnx.jit(train_policy.play, static_argnums=(1, 4))


@pytest.mark.parametrize("name", ["none", "LSTM", "GRU", "LRU", "SLSTM", "ProjectedLSTM"])
def test_a_rollout_is_its_trajectory_in_one_call(name):
    """Logits, values and the state at the end, to 1e-6; also of a second rollout, which begins in the middle of episodes."""
    environments = Environments("memory", 3)
    policy, world = make(name, environments)
    for key in (2, 3):
        before = world
        world, steps, _ = play(policy, environments, before, jax.random.key(key), 6)
        logits, value, state = policy(steps.observation, before.state, reset=steps.reset)
        log_probs = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), np.asarray(steps.action)[..., None], -1)[..., 0]
        np.testing.assert_allclose(steps.log_prob, log_probs, rtol=0, atol=1e-6)
        np.testing.assert_allclose(steps.value, value, rtol=0, atol=1e-6)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6), world.state, state)
        going_on = ~np.asarray(steps.done[:-1])
        np.testing.assert_allclose(steps.next_value[:-1][going_on], value[1:][going_on], rtol=0, atol=1e-6)
        assert steps.reset[1:].any()
        assert log_probs.std() > 0.1
        assert value.std() > 0.1
    assert not steps.reset[0].any()


def test_what_is_read_resets_and_remembers():
    """Without a reset, or from another state, a trajectory would be another."""
    environments = Environments("memory", 3)
    policy, world = make("LSTM", environments)
    world, *_ = play(policy, environments, world, jax.random.key(2), 6)
    _, steps, _ = play(policy, environments, world, jax.random.key(3), 6)
    _, value, _ = policy(steps.observation, world.state, reset=steps.reset)
    nothing = jax.tree.map(jnp.zeros_like, world.state)
    for state, reset in ((world.state, jnp.zeros_like(steps.reset)), (nothing, steps.reset)):
        assert np.abs(policy(steps.observation, state, reset=reset)[1] - value).max() > 1e-2


@pytest.mark.parametrize("name", train_policy.NAMES)
def test_any_cell_that_reads_vectors_makes_a_policy(name):
    environments = Environments("memory", 3)

    def whole(key):
        policy = Policy(name, 3, HIDDEN, 2, span=3, rngs=nnx.Rngs(key))
        world = train_policy.begin(policy, environments, key, ROWS)
        _, steps, _ = train_policy.play(policy, environments, world, key, 4)
        return policy(steps.observation, world.state, reset=steps.reset)

    logits, value, _ = jax.eval_shape(whole, jax.random.key(0))
    assert (logits.shape, value.shape) == ((4, ROWS, 2), (4, ROWS))
    assert training.parse(train_policy.Config, ["--cell", name.upper()], description="Test.").cell == (name,)


def test_a_reward_is_of_its_action_and_an_episode_begins_after_its_end():
    """The bit is shown with the first observation, and asked for with the fourth, the last."""
    environments = Environments("memory", 3)
    policy, world = make("GRU", environments)
    world, steps, ended = play(policy, environments, world, jax.random.key(2), 12)
    observation, reset, action, reward = (np.asarray(a) for a in (*steps[:3], steps.reward))
    np.testing.assert_array_equal(reset, np.tile(np.arange(12) % 4 == 0, (ROWS, 1)).T)
    np.testing.assert_array_equal(steps.terminated, np.tile(np.arange(12) % 4 == 3, (ROWS, 1)).T)
    np.testing.assert_array_equal(steps.done, steps.terminated)
    np.testing.assert_array_equal(world.reset, True)
    np.testing.assert_array_equal(np.abs(observation[::4, :, 2]), 1)
    np.testing.assert_array_equal(reward[3::4], np.where(action[3::4] * 2 - 1 == observation[::4, :, 2], 1, -1))
    np.testing.assert_array_equal(np.delete(reward, np.s_[3::4], axis=0), 0)
    assert len(np.unique(reward[3::4])) == len(np.unique(action)) == 2
    assert ended == reward.sum()
    np.testing.assert_array_equal(observation[3::4, :, 2], 0)  # nothing of the bit is left to see


def test_hidden_velocities_are_hidden_and_a_cut_off_episode_is_worth_what_the_critic_says():
    """Of the pole after the time limit, not of the new one: from the policy's memory of the whole episode, in one call."""
    environments = Environments("cartpole", None)
    environments.params = environments.params.replace(max_steps_in_episode=3)
    policy, world = make("GRU", environments)
    limits = np.array([2.4, 12 * 2 * np.pi / 360])
    seen, cut = [], 0
    for t in range(7):
        before = world
        world, steps, ended = play(policy, environments, before, jax.random.key(t), 1)
        pole = before.environment.env_state
        np.testing.assert_allclose(steps.observation[0] * limits, np.stack([pole.x, pole.theta], 1), rtol=1e-6)
        moved = [pole.x + 0.02 * pole.x_dot, pole.theta + 0.02 * pole.theta_dot]  # the action moves the velocities first
        seen.append(steps.observation[0])
        observations = jnp.stack([*seen, jnp.stack(moved, 1) / limits])
        start = policy.memory.initial_state(ROWS)
        _, value, _ = policy(observations, start, reset=jnp.zeros(observations.shape[:2], bool))
        np.testing.assert_allclose(steps.next_value[0], value[-1], rtol=0, atol=1e-6)
        assert not steps.terminated.any()
        assert steps.done.all() == (t % 3 == 2)
        np.testing.assert_allclose(steps.reward, 0.05)
        assert ended == (3 * ROWS if steps.done.all() else 0)  # a return is in whole steps
        if steps.done.all():
            seen, cut = [], cut + 1
            new = policy(world.observation[None], start, reset=jnp.ones((1, ROWS), bool))[1]
            assert np.abs(new - value[-1]).max() > 1e-2
    assert cut == 2


def random_steps(time=9, actions=3):
    """A rollout of nothing in particular, with ends of both kinds in it."""
    rng = np.random.default_rng(0)
    normal = lambda: rng.standard_normal((time, ROWS)).astype(np.float32)
    done = rng.random((time, ROWS)) < 0.4
    terminated = done & (rng.random((time, ROWS)) < 0.5)
    action = rng.integers(0, actions, (time, ROWS))
    value, next_value = normal(), normal()
    next_value[:-1] = np.where(done[:-1], next_value[:-1], value[1:])
    return Steps(None, None, action, -np.abs(normal()), value, normal(), terminated, done, next_value)


def test_advantages_are_those_of_the_definition():
    """The λ-return, less the value: what comes next is worth what the critic says of it, with weight 1 - λ and where there is no
    next step in the rollout, and else its own λ-return (Sutton and Barto, 2018, section 12.1)."""
    steps, discount, trace = random_steps(), 0.9, 0.7
    assert steps.terminated.any()
    assert (steps.done & ~steps.terminated).any()
    assert not steps.done[-1].all()
    returns = np.zeros(steps.value.shape)
    for row in range(ROWS):
        for t in reversed(range(len(steps.value))):
            later = steps.next_value[t, row]
            if not steps.done[t, row] and t + 1 < len(steps.value):
                later = (1 - trace) * later + trace * returns[t + 1, row]
            returns[t, row] = steps.reward[t, row] + (0 if steps.terminated[t, row] else discount * later)
    np.testing.assert_allclose(train_policy.advantages(steps, discount, trace), returns - steps.value, rtol=0, atol=1e-6)


def test_the_loss_is_that_of_the_papers():
    config = training.parse(train_policy.Config, ["--clip", "0.3", "--entropy", "0.07"], description="Test.")
    steps = random_steps()
    rng = np.random.default_rng(1)
    logits, value = rng.standard_normal((9, ROWS, 3)), rng.standard_normal((9, ROWS))
    advantage = rng.standard_normal((9, ROWS))
    policy = lambda observation, state, *, reset: (jnp.asarray(logits), jnp.asarray(value), state)

    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    gains, entropies, errors = [], [], []
    normal = (advantage - advantage.mean()) / advantage.std()
    clipped = 0
    for index in np.ndindex(9, ROWS):
        ratio = probabilities[index][steps.action[index]] / np.exp(steps.log_prob[index])
        bound = min(max(ratio, 0.7), 1.3)
        clipped += bound != ratio
        gains.append(min(ratio * normal[index], bound * normal[index]))
        entropies.append(-sum(p * np.log(p) for p in probabilities[index]))
        errors.append((value[index] - (steps.value[index] + advantage[index])) ** 2)
    assert 0 < clipped < len(gains)
    wanted = -np.mean(gains) + np.mean(errors) / 4 - 0.07 * np.mean(entropies)
    np.testing.assert_allclose(train_policy.loss(policy, (), steps, advantage, config), wanted, rtol=1e-5)


def test_an_update_reads_every_environment_once_from_the_state_it_began_in():
    """By an optimiser that changes nothing: the mean loss of two updates, an environment in each part of the batch."""
    environments = Environments("memory", 3)
    policy, world = make("GRU", environments)
    world, *_ = play(policy, environments, world, jax.random.key(2), 6)  # into the middle of episodes
    words = f"--environments {ROWS} --minibatches {ROWS} --passes 2 --report-every 2 --rollout 9"
    config = training.parse(train_policy.Config, words.split(), description="Test.")
    graph, params = nnx.split(policy)
    still = optax.sgd(0.0)
    whole = jax.jit(lambda carry, key: train_policy.updates(carry, key, graph, environments, still, config))
    (_, _, end), metrics = whole((params, still.init(params), world), jax.random.key(3))

    losses, rewards, count = [], 0, 0
    for key in jax.random.split(jax.random.key(3), 2):
        state = world.state
        world, steps, _ = play(policy, environments, world, jax.random.split(key)[0], 9)
        advantage = train_policy.advantages(steps, config.discount, config.trace)
        for row in range(ROWS):
            part = jax.tree.map(lambda a, row=row: a[:, row : row + 1], (state, steps, advantage))
            losses.append(train_policy.loss(policy, *part, config))
        rewards, count = rewards + steps.reward.sum(), count + steps.done.sum()
    np.testing.assert_allclose(metrics["loss"], np.mean(losses), rtol=0, atol=1e-6)
    np.testing.assert_allclose(metrics["return"], rewards / count, rtol=1e-6)
    assert rewards != 0
    np.testing.assert_allclose(end.state, world.state, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_no_key_is_used_twice(tmp_path, monkeypatch):
    """Of parameters, of where the environments begin, and of every report: `split(key)[1]` is `fold_in(key, 1)`."""
    used, begin, fold_in, rngs = [], train_policy.begin, jax.random.fold_in, nnx.Rngs.__init__
    begun = lambda policy, environments, key, rows: begin(policy, environments, noted(key), rows)

    def noted(key):
        if isinstance(key, jax.Array) and not isinstance(key, jax.core.Tracer):
            used.append(jax.random.key_data(key).tobytes())
        return key

    monkeypatch.setattr(train_policy, "begin", begun)
    monkeypatch.setattr(nnx.Rngs, "__init__", lambda self, *keys, **named: rngs(self, *map(noted, keys), **named))
    monkeypatch.setattr(jax.random, "fold_in", lambda key, data: noted(fold_in(key, data)))
    words = "--task memory --length 2 --cell gru --seed 4 --hidden-size 3 --environments 4 --rollout 9 --minibatches 2"
    train_policy.main(f"{words} --report-every 1 --steps 3 --out {tmp_path / 'run'}".split())
    assert len(set(used)) == len(used) >= 6


@pytest.mark.slow
def test_two_devices_train_as_one(tmp_path):
    """Until a difference in the last digit makes another action likelier: in the first updates."""
    words = (
        "--task memory --length 2 --cell gru --seed 4 --hidden-size 3 --environments 4 --rollout 9 --minibatches 2 --report-every 1"
    )
    for devices in (1, 2):
        out = str(tmp_path / str(devices))
        train_policy.main([*words.split(), "--steps", "3", "--devices", str(devices), "--out", out])
    one, two = (json.loads((tmp_path / name / "policy.json").read_text())["results"][0]["seeds"][0] for name in "12")
    np.testing.assert_allclose(one["loss"], two["loss"], rtol=0, atol=1e-5)
    assert one["return"] == two["return"]


@pytest.mark.slow
def test_a_policy_with_memory_learns_what_one_without_cannot(tmp_path, capsys):
    """One bit, for six steps. The numbers of the file are those of the metrics and of the table."""
    words = "--task memory --length 6 --cell lru none --seed 0 --hidden-size 16 --environments 32 --rollout 21 --minibatches 2"
    train_policy.main(f"{words} --report-every 8 --steps 64 --learning-rate 1e-2 --out {tmp_path / 'run'}".split())
    out = capsys.readouterr().out
    whole = json.loads((tmp_path / "run/policy.json").read_text())
    memory, plain = whole["results"]
    assert (memory["cell"], plain["cell"], memory["task"]) == ("LRU", "none", "memory-6")
    assert memory["seeds"][0]["return"][-1] > 0.9
    assert np.abs(plain["seeds"][0]["return"]).max() < 0.3
    assert memory["steps"] == [8 * 21 * 32 * n for n in range(1, 9)]
    for result in whole["results"]:
        lines = (tmp_path / f"run/memory-6/{result['cell']}-0/metrics.jsonl").read_text().splitlines()
        assert result["seeds"][0]["return"] == [json.loads(line)["return"] for line in lines]
        shown = f"| {result['parameters']:,} | {result['seeds'][0]['return'][-1]:.2f} | {result['steps_per_second']:,.0f} |"
        assert f"| memory-6 | {result['cell']} {shown}" in out
        assert result["steps_per_second"] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "--task cartpole --report-every 1",
            "of cartpole, which may take 500 steps, should end between two reports, but .* is 128\nWrite --report-every 4",
        ),
        (
            "--task memory --length 9 --report-every 1 --rollout 9",
            "of memory, which may take 10 steps, .* --report-every times --rollout is 9\nWrite --report-every 2.",
        ),
        ("--task cartpole --report-every 1 --steps 10", "Write --report-every 5"),  # 4 is enough, but does not divide 10
        ("--task cartpole --report-every 1 --steps 2", r"Write --report-every 4 --steps 4\."),
        ("--task memory cartpole --report-every 1 --rollout 20", r"of cartpole, .*\nWrite --report-every 30\."),
        ("--steps 10 --report-every 4", "--steps should be a multiple of --report-every 4, got 10"),
        ("--environments 6 --minibatches 4", "--environments should be a multiple of --minibatches 4, got 6"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(words, message, tmp_path, monkeypatch):
    """And the sizes that are written instead do fit."""
    with pytest.raises(training.Failure, match=message) as failure:
        train_policy.main([*words.split(), "--out", str(tmp_path / "run")])
    assert failure.value.code == 2
    if written := re.search(r"\nWrite (.*)\.$", str(failure.value)):
        monkeypatch.setattr(training, "start", lambda *_, **__: 1 / 0)  # the sizes have been checked before
        with pytest.raises(ZeroDivisionError):
            train_policy.main([*words.split(), *written[1].split(), "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()
