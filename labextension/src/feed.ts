/** The gateway's events, shared: a browser opens six connections to a server at most, for all it does. */

import { IEvent } from './card';
import { readEvents } from './events';
import { ITransport, checked } from './transport';

/** The pauses (ms) before the stream is opened again, one after the other. */
const PAUSES = [500, 1000, 2000, 5000];

/** Who hears of one app; `began` is also called when the stream was lost and is back. */
export interface IListener {
  readonly owner: string;
  readonly name: string;
  began(): void;
  event(event: IEvent): void;
  lost(error: unknown): void;
}

/** One stream of events for any number of listeners; it is open as long as there is one. */
export class Feed {
  private readonly listeners = new Set<IListener>();
  private ended: AbortController | null = null;
  private isOpen = false;

  constructor(
    private readonly transport: ITransport,
    private readonly path: string
  ) {}

  /** Tell a listener from now on; what is returned ends that. */
  listen(listener: IListener): () => void {
    this.listeners.add(listener);
    if (!this.ended) {
      this.ended = new AbortController();
      void this.run(this.ended.signal);
    } else if (this.isOpen) {
      listener.began();
    }
    return () => this.leave(listener);
  }

  private leave(listener: IListener): void {
    this.listeners.delete(listener);
    if (!this.listeners.size) {
      this.ended?.abort();
      this.ended = null;
    }
  }

  private async run(signal: AbortSignal): Promise<void> {
    for (let failures = 0; !signal.aborted; failures++) {
      try {
        const reply = await checked(await this.transport.fetch(this.path, { signal }));
        failures = 0;
        this.isOpen = true;
        this.each(listener => listener.began());
        for await (const event of readEvents(reply.body!)) {
          this.each(listener => listener.owner === event.owner && listener.name === event.app && listener.event(event));
        }
      } catch (error) {
        if (!signal.aborted) {
          this.each(listener => listener.lost(error));
        }
      } finally {
        this.isOpen = false;
      }
      await pause(PAUSES[Math.min(failures, PAUSES.length - 1)] ?? 0, signal);
    }
  }

  private each(tell: (listener: IListener) => void): void {
    [...this.listeners].forEach(tell);
  }
}

/** Where a page keeps its feeds, for the widget and JupyterLab's extension are loaded apart. */
const PLACE = Symbol.for('fal-notebook:feeds:1');

/** Return the feed for an app: one for all of a page, or, over a comm, one of its own. */
export function feedOf(transport: ITransport, owner: string, name: string): Feed {
  if (!transport.url) {
    return new Feed(transport, `/api/events?owner=${owner}&app=${name}`);
  }
  const page = globalThis as { [PLACE]?: Map<string, Feed> };
  const feeds = (page[PLACE] ??= new Map<string, Feed>());
  const feed = feeds.get(transport.url) ?? new Feed(transport, '/api/events');
  feeds.set(transport.url, feed);
  return feed;
}

function pause(milliseconds: number, signal: AbortSignal): Promise<void> {
  return new Promise(resolve => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener('abort', () => (clearTimeout(timer), resolve()), { once: true });
  });
}
