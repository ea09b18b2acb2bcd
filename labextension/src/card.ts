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
export interface IStatus {
  number: number;
  url: string;
  deploying: number | null;
  step: string;
  crash_backoff: boolean;
  last_error: string;
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
  const state = stateOf(status);
  const ended = card.steps.map(step => ({ ...step, ended: step.ended ?? step.began }));
  return {
    ...card,
    state,
    number: status.deploying ?? status.number,
    url: status.url,
    steps: status.deploying === null ? ended : card.steps,
    error: status.crash_backoff ? status.last_error : card.state === 'failed' ? card.error : ''
  };
}

function stateOf(status: IStatus): string {
  if (status.deploying !== null) {
    return `deploying revision ${status.deploying}`;
  }
  if (status.crash_backoff) {
    return 'CRASH_BACKOFF';
  }
  if (status.runners === 0) {
    return 'scaled to zero';
  }
  const queued = status.queued ? `, ${status.queued} queued` : '';
  return `${status.runners} ${status.runners === 1 ? 'runner' : 'runners'}, ${status.in_flight} in flight${queued}`;
}

/** Return the card after an event of its app. */
export function withEvent(card: ICard, event: IEvent): ICard {
  if (event.kind === 'detail') {
    return { ...card, steps: withDetail(card.steps, event.data) };
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
