import { describe, expect, it, vi } from 'vitest';

import { CommTransport, IComm } from '../transport';

type Listener = Parameters<IComm['on']>[1];

/** The browser's end of a comm, whose other end a test plays. */
class Comm implements IComm {
  readonly sent: { content: Record<string, unknown>; size: number }[] = [];
  private listeners = new Set<Listener>();

  send(content: unknown, _callbacks?: unknown, buffers: ArrayBuffer[] = []): void {
    this.sent.push({ content: content as Record<string, unknown>, size: buffers.reduce((sum, b) => sum + b.byteLength, 0) });
  }

  on(_: 'msg:custom', callback: Listener): void {
    this.listeners.add(callback);
  }

  off(_: 'msg:custom', callback: Listener): void {
    this.listeners.delete(callback);
  }

  get listening(): number {
    return this.listeners.size;
  }

  get id(): string {
    return this.sent[0]!.content.id as string;
  }

  ops(): unknown[] {
    return this.sent.map(({ content }) => content.op);
  }

  tell(op: 'head' | 'piece' | 'end' | 'failed', more: object = {}, ...pieces: string[]): void {
    const buffers = pieces.map(piece => new DataView(new TextEncoder().encode(piece).buffer as ArrayBuffer));
    [...this.listeners].forEach(listener => listener({ op, id: this.id, ...more }, buffers));
  }
}

async function asked(init?: RequestInit): Promise<{ comm: Comm; answer: Promise<Response> }> {
  const comm = new Comm();
  const answer = new CommTransport(comm).fetch('/api/apps', init);
  await vi.waitFor(() => expect(comm.sent.length).toBeGreaterThan(0));
  return { comm, answer };
}

describe('CommTransport', () => {
  it('sends a large body in pieces of at most 1 MiB', async () => {
    const { comm } = await asked({ method: 'POST', body: new Uint8Array(2.5 * 1024 * 1024) });
    expect(comm.sent[0]!.content).toMatchObject({ op: 'request', method: 'POST', path: '/api/apps', size: 2621440 });
    expect(comm.sent.slice(1).map(({ size }) => size)).toEqual([1048576, 1048576, 524288]);
  });

  it('asks for the answer piece by piece, as it is read', async () => {
    const { comm, answer } = await asked();
    comm.tell('head', { status: 200, headers: { 'x-a': 'b' } });
    const response = await answer;
    expect([response.status, response.headers.get('x-a'), comm.ops()]).toEqual([200, 'b', ['request']]);
    const text = response.text();
    await vi.waitFor(() => expect(comm.ops()).toEqual(['request', 'more']));
    comm.tell('piece', {}, 'he');
    await vi.waitFor(() => expect(comm.ops()).toEqual(['request', 'more', 'more']));
    comm.tell('piece', {}, 'llo');
    comm.tell('end');
    expect(await text).toBe('hello');
    expect(comm.listening).toBe(0);
  });

  it('has an answer without a body', async () => {
    const { comm, answer } = await asked();
    comm.tell('head', { status: 204, headers: {} });
    expect((await answer).body).toBeNull();
  });

  it('fails with what the kernel says', async () => {
    const { comm, answer } = await asked();
    comm.tell('failed', { message: 'the gateway does not start' });
    await expect(answer).rejects.toThrow('the gateway does not start');
  });

  it('cancels at the other end too', async () => {
    const ended = new AbortController();
    const { comm, answer } = await asked({ signal: ended.signal });
    ended.abort();
    await expect(answer).rejects.toThrow();
    expect([comm.ops(), comm.listening]).toEqual([['request', 'cancel'], 0]);
  });
});
