import AttentionTestSupport
import Foundation
import IntFlashAttention
import TensorFiles
import Testing

/// `intfa run --cache --chunk N`.
@Suite struct ChunkTests {
  private let folder: TemporaryFolder

  init() throws {
    folder = try TemporaryFolder()
  }

  /// `run --cache` with every addition: the file that it writes.
  private func file(_ options: [String], _ name: String) throws -> Data {
    let run = try CommandRun(
      [
        "run", folder.path("in.safetensors"), "-o", folder.path(name), "--cache", "--log-sum-exp",
        "--alibi", "--mask", folder.path("mask.npy"),
      ] + options
    )
    #expect(run.status == 0, "\(run.messages)")
    return try folder.bytes(name)
  }

  private func write(queryLength: Int, maskShape: [Int]) throws {
    let inputs = TestInputs(try InputFiles.shape(batch: 2, queryLength: queryLength))
    try InputFiles.write(inputs, to: folder.path("in.safetensors"))
    let count = maskShape.reduce(1, *)
    let elements = (0..<count).map { $0 % 11 == 0 ? -Float.infinity : Float($0 % 5) / 4 }
    let mask = try Tensor(elements, shape: maskShape)
    try NpyFile.write(mask.view, to: folder.path("mask.npy"))
  }

  @Test(
    arguments: [["--causal"], ["--window", "40,0"], ["--prefix", "20"]],
    [1, 70, 90, 100]
  )
  func chunksGiveTheSameFile(_ mask: [String], _ queryLength: Int) throws {
    try write(queryLength: queryLength, maskShape: [2, 1, queryLength, 90])
    for precision in ["int8", "bfloat16", "float32"] {
      let options = mask + ["--precision", precision]
      let whole = try file(options, "whole.safetensors")
      for chunk in ["20", "27", "64", "1000"] {
        let isSame = try file(options + ["--chunk", chunk], "chunks.safetensors") == whole
        #expect(isSame, "\(precision), chunks of \(chunk)")
      }
    }
  }

  @Test func tokensMayComeOneByOne() throws {
    try write(queryLength: 70, maskShape: [70, 90])
    let whole = try file(["--causal"], "whole.safetensors")
    let isSame = try file(["--causal", "--chunk", "1"], "chunks.safetensors") == whole
    #expect(isSame)
  }

  /// Four bits: a chunk that ends where a tile ends.
  @Test(arguments: [Precision.int4, .int4KeyValue])
  func tilesOfFourBitsGiveTheSameFile(_ precision: Precision) throws {
    try write(queryLength: 70, maskShape: [1, 90])
    let options = ["--causal", "--precision", precision.rawValue]
    let whole = try file(options, "whole.safetensors")
    let isSame = try file(options + ["--chunk", "64"], "chunks.safetensors") == whole
    #expect(isSame)
  }

  @Test(
    arguments: [
      (["--causal", "--chunk", "8"], "--cache"),
      (["--cache", "--causal", "--chunk", "0"], "--chunk is 0"),
      (["--cache", "--causal", "--chunk", "-3"], "--chunk"),
      (["--cache", "--chunk", "8"], "mask 'full'"),
      (["--cache", "--window", "5,1", "--chunk", "8"], "mask 'window 5,1'"),
      (["--cache", "--window", "5,", "--chunk", "8"], "mask 'window 5,'"),
      (["--cache", "--prefix", "9", "--chunk", "8"], "--prefix 9"),
    ]
  )
  func chunksThatCannotBeAreRefused(_ options: [String], _ text: String) throws {
    try write(queryLength: 70, maskShape: [1, 90])
    let run = try CommandRun(
      ["run", folder.path("in.safetensors"), "-o", folder.path("out.safetensors")] + options
    )
    #expect(run.status == 64)
    #expect(run.messages.contains(text), "\(run.messages)")
  }

  @Test func masksOfOtherShapesAreRefused() throws {
    for shape in [[8, 90], [80, 90], [3, 1, 70, 90], [1, 80]] {
      try write(queryLength: 70, maskShape: shape)
      let run = try CommandRun([
        "run", folder.path("in.safetensors"), "-o", folder.path("out.safetensors"), "--cache",
        "--causal", "--chunk", "8", "--mask", folder.path("mask.npy"),
      ])
      #expect(run.status == 65, "\(shape): \(run.messages)")
      #expect(run.messages.contains("mask"), "\(shape): \(run.messages)")
    }
  }
}
