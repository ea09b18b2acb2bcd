/** Follows an app through the gateway: its status now, then whatever happens to it. */

import { ICard, IStatus, withEvent, withStatus } from './card';
import { readEvents } from './events';
import { ITransport } from './transport';

/** So long (ms) after an event that says more than it tells, the status is asked for. */
const SOON = 300;
/** The pauses (ms) before it is tried again, one after the other. */
const PAUSES = [500, 1000, 2000, 5000];

/** What a follower is told: the card, and what to know of it ('' while it is live). */
export type Told = (card: ICard, remark: string) => void;

/** Keep a card up to date until the signal ends it, or the app is gone. */
export async function follow(card: ICard, transport: ITransport, told: Told, signal: AbortSignal): Promise<void> {
  const follower = new Follower(card, transport, told, signal);
  for (let failures = 0; !signal.aborted && !follower.gone; failures++) {
    try {
      await follower.run(() => (failures = 0));
    } catch (error) {
      if (!signal.aborted && !follower.gone) {
        told(follower.card, `${reason(error)} What stands here is of before; it is tried again.`);
      }
    }
    await pause(PAUSES[Math.min(failures, PAUSES.length - 1)] ?? 0, signal);
  }
}

class Follower {
  gone = false;
  private readonly ended = new AbortController();
  private timer: ReturnType<typeof setTimeout> | undefined;

  constructor(
    public card: ICard,
    private readonly transport: ITransport,
    private readonly told: Told,
    signal: AbortSignal
  ) {
    signal.addEventListener('abort', () => this.ended.abort());
  }

  /** Follow for as long as the stream of events lasts; `began` is called when it has begun. */
  async run(began: () => void): Promise<void> {
    const { owner, name } = this.card;
    const events = await this.ask(`/api/events?owner=${owner}&app=${name}`);
    await this.refresh();
    began();
    try {
      for await (const event of readEvents(events.body!)) {
        this.now(withEvent(this.card, event));
        if (event.kind !== 'sample' && event.kind !== 'detail') {
          this.timer ??= setTimeout(() => void this.refresh().catch(() => undefined), SOON);
        }
      }
    } finally {
      clearTimeout(this.timer);
    }
  }

  private async refresh(): Promise<void> {
    this.timer = undefined;
    const reply = await this.ask(`/api/apps/${this.card.owner}/${this.card.name}`, 404);
    this.gone = reply.status === 404;
    if (this.gone) {
      this.ended.abort();
      this.told({ ...this.card, state: 'deleted' }, 'This app is not deployed here any more. Run the cell to deploy it.');
    } else {
      this.now(withStatus(this.card, (await reply.json()) as IStatus));
    }
  }

  private now(card: ICard): void {
    this.card = card;
    this.told(card, '');
  }

  /** Return an answer; one of another status than 200, or `also`, is an error. */
  private async ask(path: string, also = 200): Promise<Response> {
    const reply = await this.transport.fetch(path, { signal: this.ended.signal });
    if (reply.ok || reply.status === also) {
      return reply;
    }
    const said = (await reply.json().catch(() => ({}))) as { detail?: unknown };
    throw new Error(typeof said.detail === 'string' ? said.detail : `The gateway answered ${reply.status}`);
  }
}

function reason(error: unknown): string {
  const message = error instanceof TypeError ? "Jupyter's server does not answer" : (error as Error).message;
  const sentence = message.charAt(0).toUpperCase() + message.slice(1);
  return /[.!?]$/.test(sentence) ? sentence : `${sentence}.`;
}

function pause(milliseconds: number, signal: AbortSignal): Promise<void> {
  return new Promise(resolve => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener('abort', () => (clearTimeout(timer), resolve()), { once: true });
  });
}
