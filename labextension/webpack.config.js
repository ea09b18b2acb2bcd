// Numbers in the order of use: hashes of paths would make another wheel in each folder.
module.exports = { optimization: { moduleIds: 'natural', chunkIds: 'natural' } };
