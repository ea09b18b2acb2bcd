import { describe, expect, it } from 'vitest';

import { IEvent } from '../card';
import { readEvents } from '../events';

const encoder = new TextEncoder();

async function read(...pieces: Uint8Array[]): Promise<IEvent[]> {
  const stream = new ReadableStream<Uint8Array>({
    start: controller => {
      pieces.forEach(piece => controller.enqueue(piece));
      controller.close();
    }
  });
  const found = [];
  for await (const event of readEvents(stream)) {
    found.push(event);
  }
  return found;
}

describe('readEvents', () => {
  it('takes events however they are cut, in the middle of a letter too', async () => {
    const bytes = encoder.encode(': keep-alive\n\nid: 1\nevent: deploy\ndata: {"kind":"ä"}\n\nevent: x\ndata: {"kind":"b"}\n\n');
    for (let at = 1; at < bytes.length; at++) {
      const found = await read(bytes.slice(0, at), bytes.slice(at));
      expect(found.map(event => event.kind)).toEqual(['ä', 'b']);
    }
  });

  it('leaves out what is not finished', async () => {
    expect(await read(encoder.encode('data: {"kind":"a"}\n\ndata: {"ki'))).toEqual([{ kind: 'a' }]);
  });
});
