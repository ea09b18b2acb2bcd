import { afterEach, describe, expect, it, vi } from 'vitest';

import { IEvent } from '../card';
import { IListener, feedOf } from '../feed';
import { ITransport } from '../transport';

/** A gateway whose streams a test writes and ends. */
class Gateway implements ITransport {
  readonly asked: string[] = [];
  readonly streams: ReadableStreamDefaultController<Uint8Array>[] = [];

  constructor(readonly url: string) {}

  fetch(path: string, init: RequestInit = {}): Promise<Response> {
    this.asked.push(path);
    const start = (stream: ReadableStreamDefaultController<Uint8Array>): void => {
      this.streams.push(stream);
      init.signal?.addEventListener('abort', () => stream.error(new DOMException('', 'AbortError')));
    };
    return Promise.resolve(new Response(new ReadableStream({ start })));
  }

  tell(app: string): void {
    const event = { kind: 'sample', at: 1, owner: 'ann', app, data: {} };
    this.streams[this.streams.length - 1]!.enqueue(new TextEncoder().encode(`data: ${JSON.stringify(event)}\n\n`));
  }
}

function listener(name: string): IListener & { began: ReturnType<typeof vi.fn>; heard: IEvent[]; lost: ReturnType<typeof vi.fn> } {
  const heard: IEvent[] = [];
  return { owner: 'ann', name, began: vi.fn(), heard, event: event => void heard.push(event), lost: vi.fn() };
}

describe('Feed', () => {
  afterEach(() => vi.useRealTimers());

  it('is one stream for all apps of a page, and each hears of its own', async () => {
    const gateway = new Gateway('http://one/fal');
    const all = Array.from({ length: 8 }, (_, number) => listener(`app${number}`));
    const leave = all.map(one => feedOf(gateway, one.owner, one.name).listen(one));
    await vi.waitFor(() => all.forEach(one => expect(one.began).toHaveBeenCalledTimes(1)));
    gateway.tell('app3');
    await vi.waitFor(() => expect(all[3]!.heard).toHaveLength(1));
    expect(all.map(one => one.heard.length)).toEqual([0, 0, 0, 1, 0, 0, 0, 0]);
    expect(gateway.asked).toEqual(['/api/events']);
    const late = listener('late');
    leave.push(feedOf(gateway, 'ann', 'late').listen(late));
    expect(late.began).toHaveBeenCalledTimes(1);
    leave.forEach(end => end());
    feedOf(gateway, 'ann', 'late').listen(late)();
    expect(gateway.asked).toHaveLength(2);
  });

  it('is opened again when it was lost', async () => {
    vi.useFakeTimers();
    const gateway = new Gateway('http://two/fal');
    const one = listener('app');
    const end = feedOf(gateway, 'ann', 'app').listen(one);
    await vi.advanceTimersByTimeAsync(1);
    gateway.streams[0]!.error(new Error('gone'));
    await vi.advanceTimersByTimeAsync(1);
    expect(one.lost).toHaveBeenCalledTimes(1);
    await vi.advanceTimersByTimeAsync(5000);
    expect(one.began).toHaveBeenCalledTimes(2);
    end();
  });

  it('is one for each app where there is no page to share', () => {
    const gateway = new Gateway('');
    const ends = ['a', 'b'].map(name => feedOf(gateway, 'ann', name).listen(listener(name)));
    expect(gateway.asked).toEqual(['/api/events?owner=ann&app=a', '/api/events?owner=ann&app=b']);
    ends.forEach(end => end());
  });
});
