/** Follows an app through the gateway: its status now, then whatever happens to it. */

import { ICard, IEvent, IStatus, withEvent, withStatus } from './card';
import { IListener, feedOf } from './feed';
import { ITransport, checked } from './transport';

/** So long (ms) after an event that says more than it tells, the status is asked for. */
const SOON = 300;

/** What a follower is told: the card, and what to know of it ('' while it is live). */
export type Told = (card: ICard, remark: string) => void;

/** Keep a card up to date until the signal ends it, or the app is gone. */
export function follow(card: ICard, transport: ITransport, told: Told, signal: AbortSignal): void {
  if (signal.aborted) {
    return;
  }
  const follower = new Follower(card, transport, told);
  follower.leave = feedOf(transport, card.owner, card.name).listen(follower);
  signal.addEventListener('abort', () => follower.end());
}

class Follower implements IListener {
  readonly owner: string;
  readonly name: string;
  leave: () => void = () => undefined;
  private timer: ReturnType<typeof setTimeout> | undefined;

  constructor(
    private card: ICard,
    private readonly transport: ITransport,
    private readonly told: Told
  ) {
    this.owner = card.owner;
    this.name = card.name;
  }

  began(): void {
    this.refresh().catch(error => this.lost(error));
  }

  event(event: IEvent): void {
    this.now(withEvent(this.card, event));
    if (event.kind !== 'sample' && event.kind !== 'detail') {
      this.timer ??= setTimeout(() => this.began(), SOON);
    }
  }

  lost(error: unknown): void {
    this.told(this.card, `${sentence(error)} What stands here is of before; it is tried again.`);
  }

  end(): void {
    clearTimeout(this.timer);
    this.leave();
  }

  private async refresh(): Promise<void> {
    this.timer = undefined;
    const reply = await this.transport.fetch(`/api/apps/${this.owner}/${this.name}`);
    if (reply.status !== 404) {
      this.now(withStatus(this.card, (await (await checked(reply)).json()) as IStatus));
      return;
    }
    void reply.body?.cancel();
    this.end();
    this.told({ ...this.card, state: 'deleted' }, 'This app is not deployed here any more. Run the cell to deploy it.');
  }

  private now(card: ICard): void {
    this.card = card;
    this.told(card, '');
  }
}

function sentence(error: unknown): string {
  const message = error instanceof TypeError ? 'The connection broke off' : (error as Error).message;
  const said = message.charAt(0).toUpperCase() + message.slice(1);
  return /[.!?]$/.test(said) ? said : `${said}.`;
}
