import { describe, expect, it } from 'vitest';

import { ICard, IEvent, IStatus, isDeploying, readCard, withEvent, withStatus } from '../card';

const CARD: ICard = readCard({ owner: 'ann', name: 'app' })!;
const STATUS: IStatus = { number: 3, url: 'u', deploying: null, crash_backoff: false, last_error: '', runners: 2, in_flight: 5, queued: 0 };

const event = (kind: string, data: object, at = 1): IEvent => ({ kind, at, owner: 'ann', app: 'app', data: { ...data } });

describe('readCard', () => {
  it.each([null, undefined, 5, 'x', [], {}, { owner: 'ann' }, { owner: '../x', name: 'app' }, { owner: 'ann', name: '<b>' }])(
    'takes %j for no card',
    data => expect(readCard(data)).toBeNull()
  );

  it('takes what it knows and leaves the rest', () => {
    const steps = [null, { text: 5, began: 'x' }, { text: 'a', began: 2, ended: 3, said: 's', part: 0.5 }];
    const card = readCard({ owner: 'ann', name: 'app', state: 7, log: 'x', notes: [1, 'n'], steps })!;
    expect(card).toMatchObject({ state: 'unknown', log: [], notes: ['n'], url: '' });
    expect(card.steps.map(step => step.text)).toEqual(['', '', 'a']);
  });
});

describe('withStatus', () => {
  it.each([
    [{}, '2 runners, 5 in flight'],
    [{ runners: 1, in_flight: 0, queued: 3 }, '1 runner, 0 in flight, 3 queued'],
    [{ runners: 0 }, 'scaled to zero'],
    [{ runners: 0, queued: 2 }, 'scaled to zero, 2 queued'],
    [{ deploying: 4 }, 'deploying revision 4'],
    [{ crash_backoff: true, last_error: 'broken' }, 'CRASH_BACKOFF']
  ])('says of %j: %s', (more, state) => {
    const card = withStatus(CARD, { ...STATUS, ...more });
    expect(card.state).toBe(state);
    expect(card.error).toBe('last_error' in more ? 'broken' : '');
  });
});

describe('withEvent', () => {
  it('tells the steps of a deploy with their times', () => {
    let card = withEvent(CARD, event('deploy', { step: 'accepted', message: 'revision 1' }, 10));
    card = withEvent(card, event('detail', { message: 'pulling', part: 0.5 }, 11));
    expect(isDeploying(card)).toBe(true);
    expect(card.steps).toEqual([{ text: 'accepted: revision 1', began: 10, ended: null, said: 'pulling', part: 0.5 }]);
    card = withEvent(card, event('deploy', { step: 'active', message: 'it answers' }, 12));
    expect(card.state).toBe('active');
    expect(card.steps[0]!.ended).toBe(12);
  });

  it('tells why a deploy failed, and that the next one goes on', () => {
    const failed = withEvent(CARD, event('deploy', { step: 'failed', message: 'why', log: ['a', 'b'] }));
    expect(failed).toMatchObject({ state: 'failed', error: 'why', log: ['a', 'b'] });
    expect(withEvent(failed, event('sample', { runners: 1, in_flight: 0, queued: 0 }))).toBe(failed);
    const next = withEvent(failed, event('deploy', { step: 'accepted', message: 'revision 2' }));
    expect(next).toMatchObject({ state: 'deploying', error: '', log: [] });
  });

  it('takes samples of the load', () => {
    const card = withStatus(CARD, STATUS);
    expect(withEvent(card, event('sample', { runners: 0, in_flight: 0, queued: 0 })).state).toBe('scaled to zero');
    expect(withEvent(card, event('key', {}))).toBe(card);
  });
});
