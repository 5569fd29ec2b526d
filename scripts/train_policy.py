"""Train policies with memory by recurrent PPO, beside one without, on tasks that cannot be solved without memory.

    python scripts/train_policy.py
    python scripts/train_policy.py --task memory --lengths 100 --cell none sLSTM lru --rollout 256 --out runs/policy-100

Environments are gymnax's. `memory` is MemoryChain-bsuite: one bit is shown at the start of an episode and asked for at its end, for
+1 or -1, so that a policy without memory gets 0 in the mean. `cartpole` is CartPole-v1 with the velocities hidden, at most 500.

A rollout goes step by step, by `policy.step(x, state, reset=…)`; the loss reads the whole rollout in one call, `policy(x, state,
reset=…)`, from the state that the rollout started in. A rollout, its advantages and all steps of the optimiser are an update, and
`--updates` of them one compiled program, which runs once for each of the `--reports`. Killed and started again with the same command,
it goes on and ends with the same numbers, times aside.
"""

import json
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxrnn
from jaxrnn import training
from jaxrnn.cells import CELLS
from jaxrnn.training import option

NAMES = ("none", *(name for name, cell in CELLS.items() if cell.event_ndim == 1))  # whose inputs are vectors


@dataclass(frozen=True, kw_only=True)
class Config(training.RunConfig):
    task: tuple[Literal["memory", "cartpole"], ...] = option(("memory", "cartpole"), "Tasks.")
    lengths: tuple[int, ...] = option((10, 40), "Steps from the bit to the question, in the memory task.", least=2)
    cell: tuple[Literal[NAMES], ...] = option(("none", "LSTM", "GRU"), "Cells, in upper or lower case; none is feed-forward.")
    seeds: tuple[int, ...] = option((0, 1, 2), "Seeds, each a training of its own.", least=0)
    hidden_size: int = option(64, "Width of all layers.", least=1)
    environments: int = option(64, "Environments that run at once.", least=1)
    rollout: int = option(128, "Steps of each environment in an update.", least=1)
    epochs: int = option(4, "Times through a rollout in an update.", least=1)
    minibatches: int = option(4, "Parts that the environments are split into, each for one step of Adam.", least=1)
    updates: int = option(10, "Updates in a call of the compiled program.", least=1)
    reports: int = option(20, "Calls, each followed by a line of report.", least=1)
    learning_rate: float = option(1e-3, "Step size of Adam.", above=0)
    discount: float = option(0.99, "What a reward is worth one step earlier (γ).", least=0)
    trace: float = option(0.95, "How far an advantage looks ahead before it trusts the critic (λ).", least=0)
    clip: float = option(0.2, "How far the probability of an action may move in an update.", above=0)
    entropy: float = option(0.01, "Weight of the entropy in the loss.", least=0)
    save_every: int = option(5, "Reports between checkpoints.", least=1)
    out: str = option("runs/policy", "Folder of the run; a run that is there goes on.", saved=False, metavar="FOLDER")


class FeedForward(nnx.Module):
    """The baseline, in the place of a recurrent layer and called like one: nothing is remembered."""

    def __init__(self, size, *, rngs):
        self.fc = nnx.Linear(size, size, rngs=rngs)

    def __call__(self, x, state=None, *, reset=None):
        return nnx.tanh(self.fc(x)), state

    step = __call__


class Policy(nnx.Module):
    """Observations to logits of the actions and to the value; time, if there is any, comes first."""

    def __init__(self, name, observation_size, hidden_size, actions, *, rngs):
        self.embed = nnx.Linear(observation_size, hidden_size, rngs=rngs)
        if name == "none":
            self.memory, width = FeedForward(hidden_size, rngs=rngs), hidden_size
        else:
            cell = CELLS[name](**({"proj_size": (hidden_size + 1) // 2} if name == "ProjectedLSTM" else {}))
            self.memory = jaxrnn.Recurrent(cell, hidden_size, hidden_size, batch_first=False, rngs=rngs)
            width = cell.output_size(hidden_size)
        self.actor = nnx.Linear(width, actions, kernel_init=jax.nn.initializers.orthogonal(0.01), rngs=rngs)
        self.critic = nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, x, state, *, reset):
        y, state = self.memory(nnx.tanh(self.embed(x)), state, reset=reset)
        return self.actor(y), self.critic(y)[..., 0], state

    def step(self, x, state, *, reset):
        y, state = self.memory.step(nnx.tanh(self.embed(x)), restart(self.memory, state, reset))
        return self.actor(y), self.critic(y)[..., 0], state


def initial_state(memory, rows):
    return () if isinstance(memory, FeedForward) else memory(jnp.zeros((0, rows, memory.stack.input_size)))[1]


def restart(memory, state, reset):
    select = lambda new, old: jnp.where(reset[:, None], new, old)
    return jax.tree.map(select, initial_state(memory, len(reset)), state)


class Steps(NamedTuple):
    """A rollout. Every array is (time, environments, …)."""

    observation: Any
    reset: Any  # whether the episode begins with this observation
    action: Any
    log_prob: Any
    value: Any
    reward: Any  # for this action
    terminated: Any  # after this action the episode was over,
    done: Any  # or it was cut off at the time limit
    next_value: Any  # of what followed, within the same episode


class World(NamedTuple):
    """Where the environments stand, and the policy in them."""

    environment: Any
    observation: Any
    reset: Any
    state: Any


def make(task, length):
    """The environments of a task: functions to reset and to step all of them, and the sizes of observations and actions."""
    import gymnax
    from gymnax.wrappers import LogWrapper

    env, params = gymnax.make({"memory": "MemoryChain-bsuite", "cartpole": "CartPole-v1"}[task])
    if task == "memory":
        params = params.replace(memory_length=length, max_steps_in_episode=length + 2)
        see = lambda x: x
    else:
        see = lambda x: x[..., ::2] / jnp.array([2.4, 0.21])  # position and angle, in parts of what ends an episode
    env = LogWrapper(env)

    def reset(keys):
        observation, state = jax.vmap(env.reset, (0, None))(keys, params)
        return see(observation), state

    def step(keys, state, action):
        observation, state, reward, terminated, truncated, info = jax.vmap(env.step, (0, 0, 0, None))(keys, state, action, params)
        return see(observation), state, reward, terminated, truncated, info | {"final_observation": see(info["final_observation"])}

    return reset, step, jax.eval_shape(reset, jax.random.split(jax.random.key(0), 1))[0].shape[-1], env.num_actions


def begin(policy, reset_all, key, rows):
    observation, environment = reset_all(jax.random.split(key, rows))
    return World(environment, observation, jnp.ones(rows, bool), initial_state(policy.memory, rows))


def play(policy, step_all, world, key, length):
    """A rollout of `length` steps."""

    def step(world, key):
        logits, value, state = policy.step(world.observation, world.state, reset=world.reset)
        keys = jax.random.split(key, len(value) + 1)
        action = jax.random.categorical(keys[0], logits)
        log_prob = pick(jax.nn.log_softmax(logits), action)
        observation, environment, reward, terminated, truncated, info = step_all(keys[1:], world.environment, action)
        done = terminated | truncated
        step = Steps(world.observation, world.reset, action, log_prob, value, reward, terminated, done, None)
        ended = jnp.where(done, info["returned_episode_returns"], 0)
        return World(environment, observation, done, state), (step, state, info["final_observation"], ended)

    world, (steps, states, followed, ended) = jax.lax.scan(step, world, jax.random.split(key, length))
    # An episode that goes on, or was cut off, is worth what the critic says of the observation that followed.
    look = lambda x, state: policy.step(x, state, reset=jnp.zeros(len(x), bool))[1]
    return world, steps._replace(next_value=jax.vmap(look)(followed, states)), ended.sum()


def pick(log_probs, action):
    return jnp.take_along_axis(log_probs, action[..., None], -1)[..., 0]


def advantages(steps, discount, trace):
    """Generalised advantage estimates (Schulman et al., 2016, arXiv:1506.02438): a linear recurrence, backward in time."""
    surprise = steps.reward + discount * jnp.where(steps.terminated, 0, steps.next_value) - steps.value
    return jaxrnn.linear_scan(discount * trace * (1.0 - steps.done), surprise, reverse=True)


def loss(policy, state, steps, advantage, config):
    """PPO's (Schulman et al., 2017, arXiv:1707.06347): the whole rollout in one call, from the state it started in."""
    logits, value, _ = policy(steps.observation, state, reset=steps.reset)
    log_probs = jax.nn.log_softmax(logits)
    ratio = jnp.exp(pick(log_probs, steps.action) - steps.log_prob)
    gain = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    actor = -jnp.minimum(ratio * gain, jnp.clip(ratio, 1 - config.clip, 1 + config.clip) * gain).mean()
    critic = jnp.mean((value - (steps.value + advantage)) ** 2)
    entropy = -(jnp.exp(log_probs) * log_probs).sum(-1).mean()
    return actor + 0.25 * critic - config.entropy * entropy


def compiled(task, length, name, config):
    """Functions of a key: where a training begins, and `config.updates` updates of it, compiled as one."""
    reset_all, step_all, observation_size, actions = make(task, length)
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(config.learning_rate, eps=1e-5))
    graph = None

    def first(key):
        nonlocal graph
        keys = jax.random.split(key)
        policy = Policy(name, observation_size, config.hidden_size, actions, rngs=nnx.Rngs(keys[0]))
        graph, params = nnx.split(policy)
        return params, optimizer.init(params), begin(policy, reset_all, keys[1], config.environments)

    @jax.jit
    def train(params, opt_state, world, key):
        def update(carry, key):
            params, opt_state, world = carry
            key, *keys = jax.random.split(key, 1 + config.epochs)
            state = world.state
            world, steps, ended = play(nnx.merge(graph, params), step_all, world, key, config.rollout)
            whole = state, steps, advantages(steps, config.discount, config.trace)

            def descend(carry, rows):
                params, opt_state = carry
                part = jax.tree.map(lambda a: a[:, rows], whole)  # the second axis of steps and of states is the environments'
                value, grads = jax.value_and_grad(lambda p: loss(nnx.merge(graph, p), *part, config))(params)
                updates, opt_state = optimizer.update(grads, opt_state, params)
                return (optax.apply_updates(params, updates), opt_state), value

            rows = [jax.random.permutation(key, config.environments).reshape(config.minibatches, -1) for key in keys]
            (params, opt_state), losses = jax.lax.scan(descend, (params, opt_state), jnp.concatenate(rows))
            return (params, opt_state, world), (losses.mean(), ended, steps.done.sum())

        carry, (losses, ended, count) = jax.lax.scan(update, (params, opt_state, world), jax.random.split(key, config.updates))
        return *carry, losses.mean(), ended.sum() / count.sum()

    return first, train
