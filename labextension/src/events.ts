/** Server-sent events of a stream that `fetch` opened. */

import { IEvent } from './card';

/** So long (ms) a stream may be silent: the gateway says that it lives every 15 s. */
const SILENCE = 40_000;

/** Yield the events of a stream; keep-alives and events without data are left out. */
export async function* readEvents(body: ReadableStream<Uint8Array>): AsyncGenerator<IEvent> {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = '';
  try {
    for (;;) {
      const { done, value } = await orSilence(reader.read());
      if (done) {
        return;
      }
      const blocks = (rest + decoder.decode(value, { stream: true })).split('\n\n');
      rest = blocks.pop() ?? '';
      for (const block of blocks) {
        const data = block.split('\n').find(line => line.startsWith('data: '));
        if (data) {
          yield JSON.parse(data.slice(6)) as IEvent;
        }
      }
    }
  } finally {
    void reader.cancel().catch(() => undefined);
  }
}

/** Return what comes, an error when nothing comes for too long. */
function orSilence<T>(coming: Promise<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error('The gateway has fallen silent')), SILENCE);
    coming.then(resolve, reject).finally(() => clearTimeout(timer));
  });
}
