/** Follows an app through the gateway: its status now, then whenever something happens to it. */

import { ICard, IEvent, IStatus, withEvent, withStatus } from './card';
import { readEvents } from './events';
import { ITransport } from './transport';

/** At most so often (ms) an app's status is asked for. */
const PERIOD = 500;
const PAUSES = [500, 1000, 2000, 5000];

/** What a follower is told: the card, and what to know of it ('' while it is live). */
export type Told = (card: ICard, remark: string) => void;

/** Keep a card up to date until the signal ends it. */
export async function follow(card: ICard, transport: ITransport, told: Told, signal: AbortSignal): Promise<void> {
  for (let failures = 0; !signal.aborted; failures++) {
    try {
      const status = await statusOf(card, transport, signal);
      if (status === null) {
        told(card, 'This app is not deployed here any more. Run the cell to deploy it.');
        return;
      }
      card = withStatus(card, status);
      told(card, '');
      failures = 0;
      for await (card of changes(card, transport, signal)) {
        told(card, '');
      }
    } catch (error) {
      if (!signal.aborted) {
        told(card, `${reason(error)} What stands here is of before; it is tried again.`);
      }
    }
    await pause(PAUSES[Math.min(failures, PAUSES.length - 1)] ?? 0, signal);
  }
}

async function statusOf(card: ICard, transport: ITransport, signal: AbortSignal): Promise<IStatus | null> {
  const reply = await transport.fetch(`/api/apps/${card.owner}/${card.name}`, { signal });
  if (reply.status === 404) {
    return null;
  }
  return (await checked(reply)).json() as Promise<IStatus>;
}

async function* changes(card: ICard, transport: ITransport, signal: AbortSignal): AsyncGenerator<ICard> {
  const reply = await checked(await transport.fetch(`/api/events?owner=${card.owner}&app=${card.name}`, { signal }));
  let asked = 0;
  for await (const event of readEvents(reply.body!)) {
    card = withEvent(card, event);
    if (isQuiet(event) && Date.now() - asked > PERIOD) {
      asked = Date.now();
      const status = await statusOf(card, transport, signal);
      if (status === null) {
        return;
      }
      card = withStatus(card, status);
    }
    yield card;
  }
}

function isQuiet(event: IEvent): boolean {
  return event.kind !== 'detail' && event.kind !== 'deploy';
}

async function checked(reply: Response): Promise<Response> {
  if (reply.ok) {
    return reply;
  }
  const said = (await reply.json().catch(() => ({}))) as { detail?: unknown };
  throw new Error(typeof said.detail === 'string' ? said.detail : `The gateway answered ${reply.status}.`);
}

function reason(error: unknown): string {
  const message = error instanceof TypeError ? "Jupyter's server does not answer" : (error as Error).message;
  return /[.!?]$/.test(message) ? message : `${message}.`;
}

function pause(milliseconds: number, signal: AbortSignal): Promise<void> {
  return new Promise(resolve => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener('abort', () => (clearTimeout(timer), resolve()), { once: true });
  });
}
