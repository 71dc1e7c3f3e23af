import CAttentionKernels
import Foundation
import IntFlashAttention
import Testing

/// The integer tile loop's parts that inputs of a usual size do not exhaust.
@Suite struct TileKernelTests {
  /// round(255 · 2^(-distance/64)) by the definition: 64 table entries of 16 bits, a shift, a rounding.
  private func probability(_ distance: Float) -> Float {
    let steps = Int(min(distance, 2047).rounded(.toNearestOrEven))
    let power = Int((65280 * exp2(-Double(steps & 63) / 64)).rounded())
    return Float((power >> (steps >> 6) + 128) >> 8)
  }

  /// Every distance from the maximum up to where P is zero, in half steps so that ties occur, and
  /// distances beyond any table.
  @Test(arguments: InstructionSet.supported)
  func everyStepOfTheExponential(_ set: InstructionSet) throws {
    let distances = (0..<1300).map { Float($0) / 2 } + [2046, 2047, 2048, 9000, 1e9, 1e30]
    // One key at the maximum, 63 others; value j is one in channel j, so that output j is P of key j.
    for first in stride(from: 0, to: distances.count, by: 63) {
      let tested = [0] + distances[first...].prefix(63)
      let (output, total) = try attend(set, bias: tested.map { -$0 })
      let expected = tested.map(probability)
      #expect(Array(output.prefix(tested.count)) == expected)
      #expect(total == expected.reduce(0, +))
    }
  }

  /// One query of zeros against up to 64 keys that differ in their bias only.
  private func attend(
    _ set: InstructionSet,
    bias: [Float]
  ) throws -> (output: [Float], total: Float) {
    let kernels = unsafe try set.kernelTable()
    let count = bias.count
    let tokens = Int64(count)
    let keyBytes = unsafe kernels.key_bytes(tokens, 1, false)
    let valueBytes = unsafe kernels.value_bytes(tokens, 64, false)
    let scratchBytes = Int64(INTFA_SCRATCH_BYTES)
    // Keys, values, rows of output, scratch, in whole cache lines.
    let rows = Int(INTFA_ROW_UNIT)
    let sizes = [keyBytes, valueBytes, Int64(rows * 256), scratchBytes].map {
      (Int($0) + 63) / 64 * 64
    }
    let memory = UnsafeMutableRawPointer.allocate(byteCount: sizes.reduce(0, +), alignment: 64)
    defer { unsafe memory.deallocate() }
    unsafe memory.initializeMemory(as: UInt8.self, repeating: 0, count: sizes.reduce(0, +))
    let places = unsafe (0..<4).map { unsafe memory + sizes[..<$0].reduce(0, +) }

    let keyCodes = [Int8](repeating: 0, count: count)
    var valueCodes = [Int8](repeating: 0, count: count * 64)
    for key in 0..<count { valueCodes[key * 64 + key] = 1 }
    let weights = [Int8](repeating: 1, count: 64)
    let scales = [Float](repeating: 1, count: 64)
    let biases = bias + [Float](repeating: 0, count: 64 - count)
    let query = [Int8](repeating: 0, count: rows)
    var total = [Float](repeating: 0, count: rows)
    var reference = [Float](repeating: -.infinity, count: rows)
    unsafe keyCodes.withUnsafeBufferPointer { keyCodes in
      var packing = unsafe intfa_pack()
      unsafe packing.codes = keyCodes.baseAddress
      unsafe packing.end = tokens
      unsafe packing.dimension = 1
      unsafe packing.target = places[0]
      unsafe kernels.pack_keys(&packing)
    }
    unsafe valueCodes.withUnsafeBufferPointer { valueCodes in
      var packing = unsafe intfa_pack()
      unsafe packing.codes = valueCodes.baseAddress
      unsafe packing.end = tokens
      unsafe packing.dimension = 64
      unsafe packing.target = places[1]
      unsafe kernels.pack_values(&packing)
    }
    unsafe scales.withUnsafeBufferPointer { scales in
      unsafe biases.withUnsafeBufferPointer { biases in
        unsafe query.withUnsafeBufferPointer { query in
          unsafe weights.withUnsafeBufferPointer { weights in
            unsafe total.withUnsafeMutableBufferPointer { total in
              unsafe reference.withUnsafeMutableBufferPointer { reference in
                var arguments = unsafe intfa_attend_tiles()
                unsafe arguments.rows = 1
                unsafe arguments.head_dimension = 1
                unsafe arguments.value_dimension = 64
                unsafe arguments.key_end = tokens
                unsafe arguments.first_tile = 64
                unsafe arguments.tile = 64
                unsafe arguments.visible = intfa_visible(
                  first: 0,
                  end: tokens,
                  step: 0,
                  least_end: 0,
                  rows_per_step: 1
                )
                unsafe arguments.query = query.baseAddress
                unsafe arguments.query_scale = scales.baseAddress
                unsafe arguments.key = UnsafeRawPointer(places[0])
                unsafe arguments.key_scale = scales.baseAddress
                unsafe arguments.bias = biases.baseAddress
                unsafe arguments.value = UnsafeRawPointer(places[1])
                unsafe arguments.weight = weights.baseAddress
                unsafe arguments.sums_codes = true
                unsafe arguments.out = places[2].assumingMemoryBound(to: Float.self)
                unsafe arguments.out_stride = 64
                unsafe arguments.total = total.baseAddress
                unsafe arguments.reference = reference.baseAddress
                unsafe arguments.scratch = places[3]
                unsafe kernels.attend_tiles(&arguments)
              }
            }
          }
        }
      }
    }
    let output = unsafe UnsafeBufferPointer(
      start: places[2].assumingMemoryBound(to: Float.self),
      count: 64
    )
    return (unsafe Array(output), total[0])
  }

  /// What `bench` divides by: 64 instructions a round, of 256 or 512 bits.
  @Test(arguments: InstructionSet.supported)
  func peaksCountTheirOperations(_ set: InstructionSet) throws {
    let kernels = unsafe try set.kernelTable()
    guard let peak = unsafe kernels.peak else { return }
    let counts = [INTFA_PEAK_INT8, INTFA_PEAK_FLOAT].map { peak($0, 10) }
    for count in counts {
      #expect(count > 0)
      #expect(count.isMultiple(of: 10 * 64))
      #expect(peak(INTFA_PEAK_INT8, 20) == 2 * counts[0])
    }
  }
}
