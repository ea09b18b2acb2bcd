/** What an output knows of its app: as Python made it, as it is saved, and as the gateway goes on. */

/** The MIME type of our outputs. */
export const MIME = 'application/vnd.fal-notebook.app+json';

/** One step of a deploy; times are unix seconds, `part` is how much of it is done, from 0 to 1. */
export interface IStep {
  text: string;
  began: number;
  ended: number | null;
  said: string;
  part: number | null;
}

/** What a card shows. */
export interface ICard {
  owner: string;
  name: string;
  state: string;
  number: number;
  url: string;
  /** The id of the gateway that has the app, '' where none has taken it. */
  gateway: string;
  notes: string[];
  steps: IStep[];
  error: string;
  log: string[];
}

/** An event of the gateway, as it comes in `data:`. */
export interface IEvent {
  kind: string;
  at: number;
  owner: string;
  app: string;
  data: Record<string, unknown>;
}

/** The part of an app's status that a card shows. */
export interface IStatus extends ILoad {
  number: number;
  url: string;
  deploying: number | null;
  crash_backoff: boolean;
  last_error: string;
}

/** An app's load, of a status or of an event of kind `sample`. */
interface ILoad {
  runners: number;
  in_flight: number;
  queued: number;
}

const text = (value: unknown): string => (typeof value === 'string' ? value : '');
const number = (value: unknown): number | null => (typeof value === 'number' ? value : null);
const list = (value: unknown): unknown[] => (Array.isArray(value) ? value : []);

/** Return what saved data says, null where it does not even name an app: it may be anything. */
export function readCard(data: unknown): ICard | null {
  if (typeof data !== 'object' || data === null) {
    return null;
  }
  const saved = data as Record<string, unknown>;
  const owner = text(saved.owner);
  const name = text(saved.name);
  if (!/^[a-z0-9][a-z0-9-]*$/.test(owner) || !/^[a-z0-9][a-z0-9-]*$/.test(name)) {
    return null;
  }
  return {
    owner,
    name,
    state: text(saved.state) || 'unknown',
    number: number(saved.number) ?? 0,
    url: text(saved.url),
    gateway: text(saved.gateway),
    notes: list(saved.notes).map(text).filter(Boolean),
    steps: list(saved.steps).map(readStep),
    error: text(saved.error),
    log: list(saved.log).map(text)
  };
}

function readStep(data: unknown): IStep {
  const saved = (data ?? {}) as Record<string, unknown>;
  return {
    text: text(saved.text),
    began: number(saved.began) ?? 0,
    ended: number(saved.ended),
    said: text(saved.said),
    part: number(saved.part)
  };
}

/** Return the card as the gateway's status of the app has it now. */
export function withStatus(card: ICard, status: IStatus): ICard {
  const crashed = status.crash_backoff && status.deploying === null;
  const deploying = status.deploying === null ? loadOf(status) : `deploying revision ${status.deploying}`;
  return {
    ...card,
    state: crashed ? 'CRASH_BACKOFF' : deploying,
    number: status.deploying ?? status.number,
    url: status.url,
    steps: status.deploying === null ? [] : card.steps,
    error: crashed ? status.last_error : ''
  };
}

function loadOf({ runners, in_flight, queued }: ILoad): string {
  if (runners === 0) {
    return queued ? `scaled to zero, ${queued} queued` : 'scaled to zero';
  }
  const waiting = queued ? `, ${queued} queued` : '';
  return `${runners} ${runners === 1 ? 'runner' : 'runners'}, ${in_flight} in flight${waiting}`;
}

/** Return the card after an event of its app. */
export function withEvent(card: ICard, event: IEvent): ICard {
  if (event.kind === 'detail') {
    return { ...card, steps: withDetail(card.steps, event.data), log: list(event.data.log).map(text) };
  }
  if (event.kind === 'sample' && !isDeploying(card) && !card.error) {
    return { ...card, state: loadOf(event.data as unknown as ILoad) };
  }
  if (event.kind !== 'deploy') {
    return card;
  }
  const step = text(event.data.step);
  const message = text(event.data.message);
  if (step === 'note') {
    return { ...card, notes: [...card.notes, message] };
  }
  if (step === 'failed') {
    const state = event.data.cancelled === true ? 'cancelled' : 'failed';
    return { ...card, state, error: message, log: list(event.data.log).map(text) };
  }
  return {
    ...card,
    state: step === 'active' ? 'active' : 'deploying',
    error: '',
    log: [],
    steps: [...closed(card.steps, event.at), { text: `${step}: ${message}`, began: event.at, ended: null, said: '', part: null }]
  };
}

function closed(steps: IStep[], at: number): IStep[] {
  return steps.map(step => ({ ...step, ended: step.ended ?? at }));
}

function withDetail(steps: IStep[], data: Record<string, unknown>): IStep[] {
  const last = steps[steps.length - 1];
  return last ? [...steps.slice(0, -1), { ...last, said: text(data.message), part: number(data.part) }] : steps;
}

/** Say whether steps run, so that their time counts up. */
export function isDeploying(card: ICard): boolean {
  return card.state.startsWith('deploying') || card.state === 'starts the gateway';
}

/** Say whether the deploy has ended and the app is there, to be followed from now on. */
export function isOver(card: ICard): boolean {
  return card.state === 'active' || card.state === 'up to date';
}
