"""Train policies with memory by recurrent PPO, beside one without, on tasks that cannot be solved without memory.

    python scripts/train_policy.py
    python scripts/train_policy.py --task memory --length 100 --cell none slstm lru --rollout 256 --out runs/policy-100

Environments are gymnax's. `memory` is MemoryChain-bsuite: one bit is shown when an episode begins and asked for when it ends, for a
reward of +1 or -1, so that guessing gives 0 on average. `cartpole` is CartPole-v1 with the velocities hidden: at most 500.

A rollout goes step by step, `policy.step(x, state, reset=…)`; the loss reads it in one call, `policy(x, state, reset=…)`, from the
state it began in. `--report-every` times rollout, advantages and optimisation are one compiled program (with as many as `--steps`,
all of training is one call). Killed and started again with the same command, it goes on and ends with the same numbers, times
aside; with more `--steps` it goes on for longer.
"""

import json
import platform
import sys
import time
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import training
from flax import nnx
from jax.sharding import PartitionSpec as P
from training import option

import jaxrnn
from jaxrnn.cells import CELLS
from jaxrnn.initializers import chrono, zeros

TASKS = {"memory": "MemoryChain-bsuite", "cartpole": "CartPole-v1"}  # by gymnax's names; `Environments` has what is special to each
NAMES = ("none", *(name for name, cell in CELLS.items() if cell.event_ndim == 1))  # what reads vectors


@dataclass(frozen=True, kw_only=True)
class Config(training.RunConfig):
    task: tuple[Literal[tuple(TASKS)], ...] = option(tuple(TASKS), "Tasks.", each=True)
    length: tuple[int, ...] = option((40,), "Steps to remember the bit for, in the memory task.", least=2, each=True)
    cell: tuple[Literal[NAMES], ...] = option(
        ("none", "LSTM", "GRU", "LRU"), "Cells of the memory; none is a feed-forward policy.", each=True
    )
    seed: tuple[int, ...] = option((0, 1, 2), "Seeds, each a training of its own.", least=0, each=True)
    hidden_size: int = option(64, "Width of the layers and of the hidden state.", least=1)
    environments: int = option(32, "Environments that run side by side.", least=1)
    rollout: int = option(128, "Steps of each environment in a step of training.", least=1)
    passes: int = option(4, "Times through a rollout.", least=1)
    minibatches: int = option(4, "Steps of the optimiser in a pass, each on its share of the environments.", least=1)
    learning_rate: float = option(2e-3, "Step size of Adam.", above=0)
    discount: float = option(0.99, "Discount of rewards, γ.", above=0)
    trace: float = option(0.95, "Decay of the advantage estimates, λ.", least=0)
    clip: float = option(0.2, "Range in which the ratio of probabilities counts.", above=0)
    entropy: float = option(0.01, "Weight of the entropy in the loss.", least=0)
    steps: int = option(60, "Steps of training, each a rollout and passes through it.", least=1, amount=True)
    report_every: int = option(4, "Steps between reports, compiled into one program.", least=1)
    save_every: int = option(20, "Steps between checkpoints.", least=1, saved=False)
    out: str = option("runs/policy", "Folder of the run; a run already in it is resumed.", saved=False, metavar="FOLDER")


# The policy ------------------------------------------------------------------------------------------------------------


class FeedForward(nnx.Module):
    """In the place of a recurrent layer, and called like one: remembers nothing."""

    def __init__(self, size, *, rngs):
        self.fc = nnx.Linear(size, size, rngs=rngs)

    def __call__(self, x, h_0, *, reset):
        return nnx.tanh(self.fc(x)), h_0

    step = __call__

    def initial_state(self, rows):
        return ()


class Policy(nnx.Module):
    """Logits of the actions, the value, and the state to go on from; of a trajectory, time first, or of one step."""

    def __init__(self, name, observation_size, hidden_size, actions, *, span=None, rngs):
        self.embed = nnx.Linear(observation_size, hidden_size, rngs=rngs)
        if name == "none":
            self.memory, width = FeedForward(hidden_size, rngs=rngs), hidden_size
        else:
            cell = describe(name, hidden_size, span)
            self.memory = jaxrnn.Recurrent(cell, hidden_size, hidden_size, batch_first=False, rngs=rngs)
            width = cell.output_size(hidden_size)
        self.actor = nnx.Linear(width, actions, kernel_init=jax.nn.initializers.normal(1e-3), rngs=rngs)
        self.critic = nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, x, state, *, reset):
        y, state = self.memory(nnx.tanh(self.embed(x)), h_0=state, reset=reset)
        return self.actor(y), self.critic(y)[..., 0], state

    def step(self, x, state, *, reset):
        y, state = self.memory.step(nnx.tanh(self.embed(x)), state, reset=reset)
        return self.actor(y), self.critic(y)[..., 0], state


def describe(name, hidden_size, span):
    """The cell; where it is known for how many steps something should be remembered, ready for that."""
    options = {"proj_size": (hidden_size + 1) // 2} if name == "ProjectedLSTM" else {}
    if name == "LSTM" and span:
        options = {"b_ih_init": chrono(span), "b_hh_init": zeros}
    if name == "GRU" and span:
        options = {"b_ih_init": chrono(span, forget="z", write=None), "b_hh_init": zeros}
    if name == "LRU":
        options = {"r_min": 0.9, "r_max": 0.999}
    return CELLS[name](**options)


# The environments ------------------------------------------------------------------------------------------------------


class Environments:
    """Many environments of one task: what `reset` and `step` of gymnax give, for all of them, as the policy gets to see it."""

    def __init__(self, task, length):
        import gymnax
        from gymnax.wrappers import LogWrapper

        env, params = gymnax.make(TASKS[task])
        if task == "memory":
            params = params.replace(memory_length=length, max_steps_in_episode=length + 2)  # it ends of itself, after length + 1
            self.see, self.scale, self.longest, self.best = lambda x: x, 1.0, length + 1, 1
        else:  # position and angle only, in parts of those that end an episode
            self.see, self.scale = lambda x: x[..., ::2] / jnp.array([params.x_threshold, params.theta_threshold_radians]), 0.05
            self.longest = self.best = params.max_steps_in_episode
        self.env, self.params, self.actions = LogWrapper(env), params, env.num_actions

    def reset(self, keys):
        observation, state = jax.vmap(self.env.reset, (0, None))(keys, self.params)
        return self.see(observation), state

    def step(self, keys, state, action):
        stepped = jax.vmap(self.env.step, (0, 0, 0, None))(keys, state, action, self.params)
        observation, state, reward, terminated, truncated, info = stepped
        info |= {"final_observation": self.see(info["final_observation"])}
        return self.see(observation), state, self.scale * reward, terminated, truncated, info


# PPO -------------------------------------------------------------------------------------------------------------------


class World(NamedTuple):
    """Where all environments stand, and the policy in them."""

    environment: Any
    observation: Any
    reset: Any  # whether an episode begins with this observation
    state: Any  # of the policy, before that reset


class Steps(NamedTuple):
    """A rollout: arrays (time, environments, …)."""

    observation: Any
    reset: Any
    action: Any
    log_prob: Any
    value: Any
    reward: Any  # for this action
    terminated: Any  # whether the episode is over after it,
    done: Any  # or also cut off, at the time limit
    next_value: Any  # of what followed in the same episode, even if it was cut off there


def begin(policy, environments, key, rows):
    observation, environment = environments.reset(jax.random.split(key, rows))
    return World(environment, observation, jnp.ones(rows, bool), policy.memory.initial_state(rows))


def play(policy, environments, world, key, length):
    """A rollout, the world after it, and the returns of the episodes that ended in it, summed."""

    def step(world, key):
        logits, value, state = policy.step(world.observation, world.state, reset=world.reset)
        key, *keys = jax.random.split(key, 1 + len(value))
        action = jax.random.categorical(key, logits)
        stepped = environments.step(jnp.stack(keys), world.environment, action)
        observation, environment, reward, terminated, truncated, info = stepped
        done = terminated | truncated
        log_prob = pick(jax.nn.log_softmax(logits), action)
        kept = Steps(world.observation, world.reset, action, log_prob, value, reward, terminated, done, None)
        ended = jnp.where(done, info["returned_episode_returns"], 0).sum()
        return World(environment, observation, done, state), (kept, (info["final_observation"], state), ended)

    world, (steps, after, ended) = jax.lax.scan(step, world, jax.random.split(key, length))
    look = lambda x, state: policy.step(x, state, reset=jnp.zeros(len(x), bool))[1]
    return world, steps._replace(next_value=jax.vmap(look)(*after)), ended.sum()


def pick(log_probs, action):
    return jnp.take_along_axis(log_probs, action[..., None], -1)[..., 0]


def advantages(steps, discount, trace):
    """Generalised advantage estimates (Schulman et al., 2016, arXiv:1506.02438), a linear recurrence backward in time."""
    error = steps.reward + discount * jnp.where(steps.terminated, 0, steps.next_value) - steps.value
    return jaxrnn.linear_scan(discount * trace * (1.0 - steps.done), error, reverse=True)


def loss(policy, state, steps, advantage, config):
    """PPO's (Schulman et al., 2017, arXiv:1707.06347): actor, critic and entropy, from one call over the rollout."""
    logits, value, _ = policy(steps.observation, state, reset=steps.reset)
    log_probs = jax.nn.log_softmax(logits)
    ratio = jnp.exp(pick(log_probs, steps.action) - steps.log_prob)
    gain = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    actor = -jnp.minimum(ratio * gain, jnp.clip(ratio, 1 - config.clip, 1 + config.clip) * gain).mean()
    critic = jnp.mean((value - (steps.value + advantage)) ** 2) / 4
    entropy = -jnp.sum(jnp.exp(log_probs) * log_probs, -1).mean()
    return actor + critic - config.entropy * entropy


def updates(carry, key, graph, environments, optimizer, config):
    """`config.report_every` times: a rollout, then steps of the optimiser. The mean loss, and the mean return of what ended."""

    def update(carry, key):
        params, opt_state, before = carry
        key_play, key_order = jax.random.split(key)
        world, steps, ended = play(nnx.merge(graph, params), environments, before, key_play, config.rollout)
        rollout = before.state, steps, advantages(steps, config.discount, config.trace)

        def descend(carry, rows):
            params, opt_state = carry
            part = jax.tree.map(lambda a: a[:, rows], rollout)  # environments are the second axis of states and of steps
            value, grads = jax.value_and_grad(lambda p: loss(nnx.merge(graph, p), *part, config))(params)
            change, opt_state = optimizer.update(grads, opt_state, params)
            return (optax.apply_updates(params, change), opt_state), value

        shuffle = lambda key: jax.random.permutation(key, config.environments).reshape(config.minibatches, -1)
        order = jnp.concatenate(jax.vmap(shuffle)(jax.random.split(key_order, config.passes)))
        (params, opt_state), losses = jax.lax.scan(descend, (params, opt_state), order)
        return (params, opt_state, world), (losses.mean(), ended, steps.done.sum())

    carry, (losses, ended, count) = jax.lax.scan(update, carry, jax.random.split(key, config.report_every))
    return carry, {"loss": losses.mean(), "return": ended.sum() / count.sum()}


# A run -----------------------------------------------------------------------------------------------------------------


def train(task, length, name, config, mesh, folder):
    """For each seed the return and the loss at each report, and the steps of environments in a second."""
    every = config.report_every
    environments = Environments(task, length)
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(config.learning_rate, eps=1e-5))
    rows = P(training.ROWS)
    places = World(rows, rows, rows, P(None, training.ROWS))

    def start(key):
        keys = jax.random.split(key)
        observation_size = jax.eval_shape(environments.reset, keys)[0].shape[-1]
        sizes = observation_size, config.hidden_size, environments.actions
        policy = Policy(name, *sizes, span=length and length + 1, rngs=nnx.Rngs(keys[0]))
        graph, params = nnx.split(policy)
        world = begin(policy, environments, keys[1], config.environments)
        world = World(*(training.place(mesh, part, place) for part, place in zip(world, places, strict=True)))
        return policy, graph, (*training.place(mesh, (params, optimizer.init(params))), world)

    _, graph, carry = start(jax.random.key(0))
    shardings = jax.tree.map(lambda a: a.sharding, carry)
    whole = lambda carry, key: updates(carry, key, graph, environments, optimizer, config)
    program = jax.jit(whole, out_shardings=(shardings, None)).lower(carry, jax.random.key(0)).compile()

    label, frames = f"{task}-{length}" if length else task, config.environments * config.rollout
    curves = []
    for seed in config.seed:
        start_key, key = jax.random.split(jax.random.key(seed))
        policy, _, (params, opt_state, world) = start(start_key)
        options = {"save_every": config.save_every, "tensorboard": config.tensorboard}
        run = training.Run(folder, f"{label}/{name}-{seed}", model=policy, **options)
        carry = run.restore(params=params, optimizer=opt_state, world=world)
        for number in run.steps(config.steps, every=every):
            begun = time.perf_counter()
            carry, metrics = jax.block_until_ready(program(carry, jax.random.fold_in(key, number // every)))
            seconds = time.perf_counter() - begun
            speed = f"{frames * every / seconds:,.0f} steps/s"
            numbers = f"return {float(metrics['return']):.2f}, loss {float(metrics['loss']):.4f}, {speed}"
            training.log(f"{run.name} {number * frames:,} steps: {numbers}")
            run.log(number, **metrics, seconds=seconds)
            params, opt_state, world = carry
            run.checkpoint(number, params=params, optimizer=opt_state, world=world)
        if training.is_main_process():
            curves.append({name: values.tolist() for name, (_, values) in run.metrics().items()})
    return {
        "task": label,
        "cell": name,
        "parameters": sum(a.size for a in jax.tree.leaves(carry[0])),
        "best": environments.best,
        "steps": [frames * number for number in range(every, config.steps + 1, every)],
        "steps_per_second": frames * every / float(np.median([curve["seconds"] for curve in curves])) if curves else None,
        "seeds": curves,
    }


def table(results, config):
    """Markdown: the return of each seed over the last tenth of training, and the steps of environments in a second."""
    last = -max(1, config.steps // config.report_every // 10)
    lines = [f"| task | cell | parameters | return, seeds {' '.join(map(str, config.seed))} | steps/s |", "|---|---|---|---|---|"]
    for result in results:
        returns = " ".join(f"{np.mean(curve['return'][last:]):.2f}" for curve in result["seeds"])
        counts = f"{result['parameters']:,} | {returns} | {result['steps_per_second']:,.0f}"
        lines.append(f"| {result['task']} | {result['cell']} | {counts} |")
    return "\n".join(lines)


def plot(results, path):
    tasks = list(dict.fromkeys(result["task"] for result in results))
    with training.figure(path, len(tasks), width=5 * len(tasks)) as all_axes:
        for axes, task in zip(np.ravel(all_axes), tasks, strict=True):
            for result in (result for result in results if result["task"] == task):
                returns, plain = np.array([curve["return"] for curve in result["seeds"]]), result["cell"] == "none"
                look = {"color": "black", "linestyle": "--"} if plain else training.cell_style(result["cell"])
                axes.plot(result["steps"], returns.mean(0), label="feed-forward" if plain else result["cell"], **look)
                axes.fill_between(result["steps"], returns.min(0), returns.max(0), color=look["color"], alpha=0.2, lw=0)
            axes.set(title=task, xlabel="steps of all environments", ylabel="return of an episode")
            axes.set_ylim(top=1.05 * result["best"])
            axes.grid(alpha=0.3)
            axes.legend()


def main(arguments=None):
    config = training.parse(Config, arguments, description=__doc__)
    training.require("matplotlib", "jaxrnn[train]")
    for package in ("gymnax", "six"):
        training.require(package, "jaxrnn[rl]")
    tasks = [(task, length) for task in config.task for length in (config.length if task == "memory" else [None])]
    between = config.report_every * config.rollout
    longest, task = max((Environments(task, length).longest, task) for task, length in tasks)
    if between < longest:
        rule = f"an episode of {task}, which may take {longest} steps, should end between two reports"
        least = -(-longest // config.rollout)
        works = next((number for number in range(least, config.steps + 1) if config.steps % number == 0), None)
        hint = f"--report-every {works}" if works else f"--report-every {least} --steps {least}"
        raise training.Failure(f"{rule}, but --report-every times --rollout is {between}\nWrite {hint}.", code=2)
    if config.steps % config.report_every:
        rule = f"--steps should be a multiple of --report-every {config.report_every}"
        raise training.Failure(f"{rule}, got {config.steps}", code=2)
    if config.environments % config.minibatches:
        rule = f"--environments should be a multiple of --minibatches {config.minibatches}"
        raise training.Failure(f"{rule}, got {config.environments}", code=2)
    mesh = training.start(config, batch_size=config.environments)
    with training.open_folder(config) as folder:
        results = [train(task, length, name, config, mesh, folder) for task, length in tasks for name in config.cell]
        if training.is_main_process():
            plot(results, folder.path / "policy.png")
            versions = {name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax", "gymnax")}
            header = {
                "configuration": {key: value for key, value in asdict(config).items() if key != "out"},
                "device": jax.devices()[0].device_kind,
                "system": platform.platform(),
                "versions": versions | {"python": platform.python_version()},
            }
            whole = {"header": header, "results": results}
            training.write_whole(folder.path / "policy.json", json.dumps(whole, indent=1) + "\n")
            training.log(f"\n{table(results, config)}\n\nplot, numbers and metrics: {config.out}")


if __name__ == "__main__":
    sys.exit(training.exit_code(main))
